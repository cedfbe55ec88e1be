"""Where published SAEs say their hook and model, and the table of releases: local copies, the hub's cache, the hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from attlas.cli import main
from attlas.errors import SAEFormatError
from attlas.saes import load_sae
from attlas.saes.formats import FORMATS, published
from attlas.saes.formats.places import hook_of

from .published_files import D, F, agrees, gemma_folder, tokens, weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("said", "model", "hook"),
    [
        ("layers.5", "", "blocks.5.hook_resid_post"),
        ("model.layers.11", "", "blocks.11.hook_resid_post"),
        ("h.3", "gpt2", "blocks.3.hook_resid_post"),
        ("layers.5.attention", "pythia-160m", "blocks.5.hook_attn_out"),
        ("h.3.attn", "gpt2", "blocks.3.hook_attn_out"),
        ("layers.5.mlp", "", "blocks.5.hook_mlp_out"),
        ("layers.5.self_attn", "google/gemma-2-2b", ""),
        ("layers.5.mlp", "allenai/OLMo-2-1124-7B", ""),
        ("layers.5", "google/gemma-2-2b", "blocks.5.hook_resid_post"),
        ("model.layers.7.self_attn.o_proj.input", "google/gemma-3-1b-pt", "blocks.7.attn.hook_z"),
        ("resid_post_layer_3", "", "blocks.3.hook_resid_post"),
        ("attn_out_layer3", "", "blocks.3.hook_attn_out"),
        ("blocks.5.attn.hook_z", "", "blocks.5.attn.hook_z"),
        ("embed_tokens", "", "hook_embed"),
        ("layers.5.input_layernorm", "", ""),
        ("my-sae", "", ""),
    ],
)
def test_hooks_from_the_names_of_modules(said: str, model: str, hook: str) -> None:
    assert hook_of(said, model) == hook


def test_sparsify_folders_say_hook_and_model(tmp_path: Path) -> None:
    w, root = weights(), tmp_path / "sae-pythia-160m-32k"
    for hook in ("layers.5.attention", "layers.5"):
        (root / hook).mkdir(parents=True)
        state = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "W_dec": w["W_dec"]}
        save_file(state | {"b_dec": w["b_dec"]}, root / hook / "sae.safetensors")
        record = {
            "expansion_factor": 32,
            "normalize_decoder": True,
            "num_latents": F,
            "k": 5,
            "signed": False,
            "d_in": D,
        }
        (root / hook / "cfg.json").write_text(json.dumps(record))
    sae, x = load_sae(root / "layers.5.attention"), tokens()
    assert (sae.cfg.hook_name, sae.cfg.model_name) == ("blocks.5.hook_attn_out", "pythia-160m")
    W = {name: t.double() for name, t in w.items()}
    top = ((x.double() - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu().topk(5)
    f = torch.zeros(len(x), F, dtype=torch.float64).scatter(-1, top.indices, top.values)
    agrees(sae, x, f, f @ W["W_dec"] + W["b_dec"])
    (root / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m-deduped", "ctx_len": 2048}))
    cfg = load_sae(root / "layers.5").cfg
    assert (cfg.hook_name, cfg.model_name, cfg.context_size) == (
        "blocks.5.hook_resid_post",
        "EleutherAI/pythia-160m-deduped",
        2048,
    )
    with pytest.raises(SAEFormatError, match=r"it holds 2 SAEs: give '.*layers\.5'"):
        load_sae(root)


def test_kissanes_file_names_say_hook_and_model(tmp_path: Path) -> None:
    w = {name: t for name, t in weights().items() if name != "threshold"}
    path = (
        tmp_path / "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_ds24576_bs4096_dc1.00e-05_rsanthropic_rie25000_nr4_v9.pt"
    )
    torch.save(w, path)
    sae, x = load_sae(path), tokens()
    assert (sae.cfg.hook_name, sae.cfg.model_name) == ("blocks.5.attn.hook_z", "gpt2-small")
    W = {name: t.double() for name, t in w.items()}
    f = ((x.double() - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu()
    agrees(sae, x, f, f @ W["W_dec"] + W["b_dec"])


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_release_is_whole() -> None:
    names = [release.name for release in published.RELEASES]
    assert len(names) == len(set(names))
    for release in published.RELEASES:
        assert release.layout in FORMATS
        assert "{layer}" in release.path
        assert "{layer}" in release.hook
        assert hook_of(release.hook.format(layer=3)) == release.hook.format(layer=3)
        assert release.pattern("L5").count("5") >= 1
        assert "{" not in release.pattern("5")
    assert {release.layout for release in published.RELEASES} == set(FORMATS)


def test_the_docs_hold_the_table() -> None:
    assert published.markdown() in (ROOT / "docs" / "saes.md").read_text(encoding="utf-8")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTLAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "saes"


def test_a_release_is_found_in_a_local_copy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: unreachable())
    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    for l0 in (10, 70):
        gemma_folder(cache, f"gemma-scope-2b-pt-att/layer_1/width_16k/average_l0_{l0}", weights(l0))
    gemma_folder(cache, "gemma-scope-2b-pt-att/layer_2/width_16k/average_l0_9", weights())
    for name in ("gemma-scope-2b-pt-att/layer_1/width_16k/average_l0_70", "gemma-scope-2b-pt-att/layer_1/*/*_70",
                 "google/gemma-scope-2b-pt-att/layer_1/width_16k/average_l0_70"):  # fmt: skip
        sae = load_sae(name)
        assert sae.cfg.hook_name == "blocks.1.attn.hook_z"
        assert torch.equal(sae.W_enc, weights(70)["W_enc"])
    assert load_sae("gemma-scope-2b-pt-att/L2").cfg.hook_name == "blocks.2.attn.hook_z"
    for name, match in (
        ("gemma-scope-2b-pt-att/1", "names 2 SAEs, such as"),
        ("gemma-scope-2b-pt-att", "names no SAE of the release"),
        ("gemma-scope-2b-pt-att/../x", "names no SAE of the release"),
        ("gemma-scope-2b-pt-att/layer_7/width_16k/average_l0_3", "needs the network once, or a copy in"),
        ("gemma-scope-2b-pt-attn/layer_1", "did you mean 'gemma-scope-2b-pt-att'"),
    ):
        with pytest.raises(SAEFormatError, match=match) as caught:
            load_sae(name)
        assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_one_sae_and_what_stands_beside_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    one = "layer_3/width_16k/average_l0_20"

    def snapshot(repository: str, **kwargs: Any) -> str:
        if kwargs.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        asked.append((repository, kwargs["allow_patterns"]))
        gemma_folder(tmp_path, f"models--google--gemma-scope-2b-pt-att/snapshots/f0/{one}", weights())
        return str(tmp_path / "models--google--gemma-scope-2b-pt-att/snapshots/f0")

    files = [
        f"{one}/params.npz",
        "layer_4/width_16k/average_l0_1/params.npz",
        "layer_4/width_16k/average_l0_2/params.npz",
    ]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    siblings = [SimpleNamespace(rfilename=file) for file in files]
    monkeypatch.setattr(huggingface_hub, "model_info", lambda repository, timeout: SimpleNamespace(siblings=siblings))
    sae = load_sae("gemma-scope-2b-pt-att/3")
    assert (sae.cfg.hook_name, sae.cfg.model_name) == ("blocks.3.attn.hook_z", "google/gemma-2-2b")
    ((repository, patterns),) = asked
    assert repository == "google/gemma-scope-2b-pt-att"
    assert patterns[:2] == [one, f"{one}/*"]
    with pytest.raises(SAEFormatError, match="names 2 SAEs, such as layer_4"):
        load_sae("gemma-scope-2b-pt-att/4")
    with pytest.raises(SAEFormatError, match=r"has no 'layer_3/width_16k/average_l0_21'; did you mean 'layer_3/"):
        load_sae("gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_21")


def test_attlas_models_saes(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gemma_folder(cache, "gemma-scope-2b-pt-att/layer_1/width_16k/average_l0_10", weights())
    assert main(["models", "saes", "--model", "Gemma-2", "--hook", "hook_z", "--json"]) == 0
    releases = json.loads(capsys.readouterr().out)["releases"]
    assert [(r["name"], r["present"]) for r in releases] == [
        ("gemma-scope-2b-pt-att", True),
        ("gemma-scope-9b-pt-att", False),
    ]
    assert main(["models", "saes", "--model", "gema-2-2b"]) == 2
    assert "did you mean" in capsys.readouterr().err
