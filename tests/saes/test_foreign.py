"""Foreign SAEs: applied exactly as their library does, or refused by the name of what is not understood."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attlas.errors import SAEFormatError
from attlas.saes import ARCHITECTURES, SAE, SAEConfig, load_sae
from attlas.saes.architectures import create_sae
from attlas.saes.formats import dictionary_learning, original, sparsify


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.5
        parameter.data = noise.abs() if name == "threshold" else noise


def own_sae(arch: str = "topk") -> SAE:
    sae = create_sae(SAEConfig(d_in=12, d_sae=20, k=4, arch=arch, hook_name="blocks.0.attn.hook_z"))
    randomise(sae)
    return sae


def rewrite(path: Path, change: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    record = json.loads(path.read_text())
    record.update(change)
    path.write_text(json.dumps({key: value for key, value in record.items() if key not in drop}))


@pytest.mark.parametrize(
    ("said", "files", "match"),
    [
        ("expected_average_only_in", {}, r"does not hold the scale; put activation_scaler\.json beside it"),
        ("expected_average_only_in", {"scaling_factor": None}, "does not hold the scale"),
        ("expected_average_only_in", {"scaling_factor": "2"}, r"scaling_factor='2'; it must be a finite number"),
        ("expected_average_only_in", {"scaling_factor": -1}, r"scaling_factor=-1\.0; it must be above 0"),
        ("none", {"scaling_factor": 0.5}, r"says normalize_activations 'none'; set it to 'expected_average_only_in'"),
        ("covariance_whitening", {}, r"lacks activation_whitening\.safetensors"),
        ("zscore", {}, r"normalize_activations='zscore'"),
    ],
)
def test_scales_that_contradict_their_configuration(
    said: str, files: dict[str, Any], match: str, tmp_path: Path
) -> None:
    own_sae("standard").save(tmp_path)
    rewrite(tmp_path / "cfg.json", {"normalize_activations": said, "metadata": {}})
    if files:
        (tmp_path / "activation_scaler.json").write_text(json.dumps(files))
    with pytest.raises(SAEFormatError, match=match):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sigmoid_gain": 2}, r"has sigmoid_gain=2, which Attlas does not know"),
        ({"metadata": {"hook_head_index": 3}}, r"hook_head_index=3: it reads or reconstructs something else"),
        ({"metadata": {"hook_name_out": "blocks.1.hook_mlp_out"}}, r"hook_name_out='blocks\.1\.hook_mlp_out'"),
        ({"d_out": 12}, "d_out=12"),
        ({"activation_fn": "relu", "activation_fn_kwargs": {"beta": 2}}, "beta=2"),
        ({"finetuning_scaling_factor": True}, "lacks the weights scaling_factor"),
        ({"dtype": "nn"}, "dtype='nn'; use one of float32"),
        ({"d_in": "12"}, "d_in='12'; it must be a whole number"),
        ({"metadata": [1]}, "metadata=.*must be an object"),
        ({"matryoshka_widths": 7}, "matryoshka_widths=7"),
    ],
)
def test_saelens_keys_that_change_the_function(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    own_sae("standard").save(tmp_path)
    rewrite(tmp_path / "cfg.json", {"metadata": {}} | change)
    with pytest.raises(SAEFormatError, match=match) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def test_keys_of_the_training_and_neutral_ones_pass(tmp_path: Path) -> None:
    sae = own_sae("standard")
    sae.save(tmp_path)
    rewrite(
        tmp_path / "cfg.json",
        {
            "metadata": {"sae_lens_version": "6.1.0", "hook_head_index": None, "anything": {"at": "all"}},
            "l1_coefficient": 5,
            "lr": 1e-4,
            "new_flag": False,
            "new_list": [],
            "new_text": "",
        },
    )
    x = torch.randn(9, 12)
    assert torch.equal(load_sae(tmp_path)(x), sae(x))


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_topk_without_k_is_refused(kind: str, tmp_path: Path) -> None:
    own_sae(kind).save(tmp_path / "theirs")
    rewrite(tmp_path / "theirs" / "cfg.json", {"architecture": kind, "metadata": {}}, drop=("k",))
    with pytest.raises(SAEFormatError, match="lacks 'k', which the SAE's function depends on"):
        load_sae(tmp_path / "theirs")
    dictionary_learning.save(own_sae(kind), tmp_path / "dl")
    state = torch.load(tmp_path / "dl" / "ae.pt", weights_only=True)
    del state["k"]
    torch.save(state, tmp_path / "dl" / "ae.pt")
    record = json.loads((tmp_path / "dl" / "config.json").read_text())
    del record["trainer"]["k"]
    record.pop("attlas", None)
    (tmp_path / "dl" / "config.json").write_text(json.dumps(record))
    with pytest.raises(SAEFormatError, match="lacks 'k'"):
        load_sae(tmp_path / "dl")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"signed": True}, r"signed=True \(the k largest by magnitude"),
        ({"embed_skip": True}, "embed_skip=True"),
        ({"gram_lookup": True}, "gram_lookup=True"),
        ({"skip_connection": True}, "transcoder"),
        ({"transcode": True}, "transcoder"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"num_heads": 4}, "num_heads=4, which Attlas does not know"),
        ({"k": 4.5}, r"k=4\.5; it must be a whole number"),
        ({"num_latents": "many"}, "num_latents='many'"),
    ],
)
def test_sparsify_flags(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    sparsify.save(own_sae(), tmp_path)
    rewrite(tmp_path / "cfg.json", change, drop=("attlas",))
    with pytest.raises(SAEFormatError, match=match):
        load_sae(tmp_path)


def test_sparsify_plain_formula(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    W = {"encoder.weight": torch.randn(80, 24, generator=g), "encoder.bias": torch.randn(80, generator=g) * 0.1}
    W |= {"W_dec": torch.randn(80, 24, generator=g), "b_dec": torch.randn(24, generator=g) * 0.1}
    save_file(W, tmp_path / "sae.safetensors")
    harmless = {"signed": False, "multi_topk": True, "normalize_decoder": True, "lookup_max_order": 4}
    (tmp_path / "cfg.json").write_text(json.dumps({"num_latents": 80, "k": 5, "d_in": 24, **harmless}))
    x = torch.randn(9, 24, generator=g)
    pre = (x - W["b_dec"]) @ W["encoder.weight"].T + W["encoder.bias"]
    top = pre.topk(5)
    f = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
    torch.testing.assert_close(load_sae(tmp_path)(x), f @ W["W_dec"] + W["b_dec"], atol=1e-5, rtol=1e-5)


def test_surplus_weights_are_refused(tmp_path: Path) -> None:
    sparsify.save(own_sae(), tmp_path / "sparsify")
    path = tmp_path / "sparsify" / "sae.safetensors"
    save_file({**load_file(path), "W_skip": torch.zeros(12, 12)}, path)
    dictionary_learning.save(own_sae(), tmp_path / "dl")
    state = torch.load(tmp_path / "dl" / "ae.pt", weights_only=True)
    torch.save({**state, "scale": torch.ones(12)}, tmp_path / "dl" / "ae.pt")
    original.save(own_sae("standard"), tmp_path / "original")
    state = torch.load(tmp_path / "original" / "sae.pt", weights_only=True)
    torch.save({**state, "b_pre": torch.ones(12)}, tmp_path / "original" / "sae.pt")
    for name, weight in (("sparsify", "W_skip"), ("dl", "scale"), ("original", "b_pre")):
        with pytest.raises(SAEFormatError, match=f"holds {weight} besides the weights"):
            load_sae(tmp_path / name)


@pytest.mark.parametrize(
    ("place", "change", "match"),
    [
        ("trainer", {"temperature": 3}, "temperature=3, which Attlas does not know"),
        ("trainer", {"dict_size": 21}, "dict_size=21 and the weights 20"),
        ("trainer", {"dict_class": ["x"]}, "dict_class"),
        ("trainer", {"lm_name": 3}, "lm_name=3; it must be a string"),
        ("buffer", {"rescale_acts": True}, "rescale_acts=True"),
        ("buffer", {"ctx_len": -1}, "context_size=-1"),
    ],
)
def test_dictionary_learning_keys(place: str, change: dict[str, Any], match: str, tmp_path: Path) -> None:
    dictionary_learning.save(own_sae(), tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record.pop("attlas")
    record[place] |= change
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(SAEFormatError, match=match):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"concat_heads": False, "head": 3}, "an SAE of one head"),
        ({"bend": 2}, "bend=2"),
        ({"act_size": 11}, r"act_size=11 and W_enc has shape \[12, 20\]"),
        ({"l1_coeff": "x"}, "l1_coeff='x'"),
    ],
)
def test_original_keys(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    original.save(own_sae("standard"), tmp_path)
    rewrite(tmp_path / "sae_cfg.json", {"seed": 49, "site": "z", "head": "cat", "concat_heads": True, "beta1": 0.9})
    load_sae(tmp_path)
    rewrite(tmp_path / "sae_cfg.json", change)
    with pytest.raises(SAEFormatError, match=match):
        load_sae(tmp_path)


BAD_VALUES: list[dict[str, Any]] = [
    {name: value}
    for name in ("d_in", "d_sae", "k")
    for value in ("12", -1, 0, 12.0, None, True, [12], 10**6, 10**12, 10**30, float("nan"))
] + [
    {"arch": 3},
    {"arch": "relu9"},
    {"arch": ["topk"]},
    {"sparsity": "1"},
    {"sparsity": -1.0},
    {"sparsity": float("inf")},
    {"bandwidth": 0},
    {"k_aux": -3},
    {"k_aux": 1.5},
    {"widths": "all"},
    {"widths": [5, "x", 20]},
    {"widths": [30, 20]},
    {"apply_b_dec_to_input": "no"},
    {"normalisation": 1},
    {"normalisation": "zscore"},
    {"dtype": "float8"},
    {"dtype": "nn"},
    {"hook_name": 7},
    {"hook_name": None},
    {"model_name": {}},
    {"n_heads": "3"},
    {"n_heads": 5, "d_head": 5},
    {"context_size": -4},
    {"strange": 1},
]


@pytest.mark.parametrize("change", BAD_VALUES, ids=lambda change: json.dumps(change))
def test_damaged_configurations_are_refused_in_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    own_sae().save(tmp_path)
    record = json.loads((tmp_path / "cfg.json").read_text())
    record["metadata"]["attlas"]["config"] |= change
    (tmp_path / "cfg.json").write_text(json.dumps(record))
    with pytest.raises(SAEFormatError) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    "attlas", [[], 3, {"format": "1"}, {"format": 1}, {"format": 1, "config": []}, {"format": 1, "config": {"k": 2}}]
)
def test_damaged_frames(attlas: Any, tmp_path: Path) -> None:
    own_sae().save(tmp_path)
    record = json.loads((tmp_path / "cfg.json").read_text())
    record["metadata"]["attlas"] = attlas
    del record["d_in"]
    (tmp_path / "cfg.json").write_text(json.dumps(record))
    with pytest.raises(SAEFormatError):
        load_sae(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_weights_that_are_not_finite(arch: str, value: float, tmp_path: Path) -> None:
    own_sae(arch).save(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    weights = load_file(path)
    weights["W_dec"][3, 4] = value
    save_file(weights, path)
    with pytest.raises(SAEFormatError, match="W_dec holds NaN or infinity in 1 of 240 places"):
        load_sae(tmp_path)


def test_a_loaded_sae_can_be_trained_and_shares_no_memory(tmp_path: Path) -> None:
    own_sae().save(tmp_path)
    first, second = load_sae(tmp_path), load_sae(tmp_path)
    assert all(p.requires_grad and not p.is_meta for p in first.parameters())
    with torch.no_grad():
        first.W_dec.zero_()
    assert float(second.W_dec.detach().abs().sum()) > 0


def test_names_of_releases_are_checked_before_saelens_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sae_lens"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("saelens:gpt2-small-hook-z-k/blocks.5.hook_z", "saelens:gpt2-small-hook-z-kk/9", "saelens:x"):
        with pytest.raises(SAEFormatError):
            load_sae(name)
    assert "sae_lens" not in sys.modules


def test_the_listing_is_saelens_own() -> None:
    """Read as lines here, as YAML there; a part of the file, since the whole takes seconds to parse."""
    from importlib.util import find_spec

    import yaml

    from attlas.saes.formats.saelens_releases import read_listing

    text = Path(find_spec("sae_lens").origin).with_name("pretrained_saes.yaml").read_text(encoding="utf-8")
    parts = re.split(r"^(?=[^ \n])", text, flags=re.MULTILINE)
    some = "".join(sorted(parts, key=len)[:90])
    found = yaml.safe_load(some)
    theirs = {name: list(dict.fromkeys(str(e["id"]) for e in value["saes"])) for name, value in found.items()}
    assert len(theirs) > 50
    assert read_listing(some) == theirs
