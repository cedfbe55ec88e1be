"""Files: what Attlas writes is read back bit-equal, and by the libraries themselves with the same function."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attlas.errors import SAEFormatError
from attlas.saes import SAE, load_sae
from attlas.saes.formats import FORMATS, dictionary_learning, original, saelens, sparsify

from .made import ARCHS, HOOK, random_sae


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(7, 5, 12, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("arch", ARCHS)
def test_own_round_trip_is_bit_equal(arch: str, tmp_path: Path) -> None:
    sae = random_sae(arch)
    sae.save(tmp_path / "sae")
    for again in (SAE.load(tmp_path / "sae"), load_sae(tmp_path / "sae")):
        assert again.cfg == sae.cfg
        assert again.hash == sae.hash
    assert not list(tmp_path.glob("sae/.*"))


def _writable(name: str) -> list[str]:
    only = {"sparsify": ["topk"], "original": ["standard"]}
    return only.get(name, ARCHS) if hasattr(FORMATS[name], "save") else []


@pytest.mark.parametrize(("name", "arch"), [(name, arch) for name in FORMATS for arch in _writable(name)])
def test_every_format_round_trips(name: str, arch: str, tmp_path: Path, x: torch.Tensor) -> None:
    sae = random_sae(arch)
    FORMATS[name].save(sae, tmp_path)
    assert [other for other, module in FORMATS.items() if module.detect(tmp_path)] == [name]
    again = load_sae(tmp_path)
    assert (again.cfg.arch, again.cfg.d_sae, again.cfg.hook_name) == (arch, 20, HOOK)
    torch.testing.assert_close(again(x), sae(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(again.encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)


def test_sparsify_layout(tmp_path: Path) -> None:
    sae = random_sae("topk")
    sparsify.save(sae, tmp_path)
    weights = load_file(tmp_path / "sae.safetensors")
    assert {n: tuple(t.shape) for n, t in weights.items()} == {
        "encoder.weight": (20, 12),
        "encoder.bias": (20,),
        "W_dec": (20, 12),
        "b_dec": (12,),
    }
    record = json.loads((tmp_path / "cfg.json").read_text())
    del record["attlas"]  # as sparsify itself writes it
    (tmp_path / "cfg.json").write_text(json.dumps(record))
    assert load_sae(tmp_path).cfg.k == 4


def test_sparsify_itself_reads_and_writes(tmp_path: Path, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")  # it would choose Triton on machines with no GPU
    sparsify_library = pytest.importorskip("sparsify")
    sae = random_sae("topk")
    sparsify.save(sae, tmp_path / "ours")
    theirs = sparsify_library.SparseCoder.load_from_disk(tmp_path / "ours")
    torch.testing.assert_close(theirs(x.flatten(0, 1)).sae_out, sae(x).flatten(0, 1), atol=1e-5, rtol=1e-5)
    theirs.save_to_disk(tmp_path / "theirs")
    torch.testing.assert_close(load_sae(tmp_path / "theirs")(x), sae(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_dictionary_learning_itself_reads(arch: str, tmp_path: Path, x: torch.Tensor) -> None:
    pytest.importorskip("dictionary_learning")
    from dictionary_learning.utils import load_dictionary

    sae = random_sae(arch)
    dictionary_learning.save(sae, tmp_path)
    if arch == "standard":  # its loader normalises the decoder of this class, which is the same function
        torch.testing.assert_close(load_dictionary(str(tmp_path), "cpu")[0](x), sae(x), atol=1e-4, rtol=1e-4)
        return
    theirs, _ = load_dictionary(str(tmp_path), "cpu")
    torch.testing.assert_close(theirs(x.flatten(0, 1)), sae(x).flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert theirs.dict_size == 20


def test_jumprelu_without_b_dec_in_the_input(tmp_path: Path, x: torch.Tensor) -> None:
    """dictionary_learning's JumpReLU does not subtract b_dec: the difference is folded into b_enc."""
    sae = random_sae("jumprelu")
    dictionary_learning.save(sae, tmp_path)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    pre = x @ state["W_enc"] + state["b_enc"]
    f = torch.relu(pre * (pre > state["threshold"]))
    torch.testing.assert_close(f @ state["W_dec"] + state["b_dec"], sae(x), atol=1e-5, rtol=1e-5)


def test_original_pt_with_and_without_config(tmp_path: Path, x: torch.Tensor) -> None:
    sae = random_sae("standard")
    state = {n: sae.state_dict()[n] for n in ("W_enc", "W_dec", "b_enc", "b_dec")}
    torch.save(state, tmp_path / "gpt2_L2.pt")
    bare = load_sae(tmp_path / "gpt2_L2.pt")
    assert bare.cfg.hook_name == ""
    config = {"act_name": HOOK, "act_size": 12, "dict_size": 20, "l1_coeff": 1.8, "seq_len": 128}
    (tmp_path / "gpt2_L2_cfg.json").write_text(json.dumps(config))
    full = load_sae(tmp_path)
    assert (full.cfg.hook_name, full.cfg.sparsity) == (HOOK, 1.8)
    torch.testing.assert_close(full(x), sae(x))
    torch.testing.assert_close(bare(x), sae(x))


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never run",)


@pytest.mark.parametrize("layout", ["original", "dictionary_learning"])
def test_pickles_are_refused_unopened(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if layout == "dictionary_learning":
        dictionary_learning.save(random_sae("topk"), tmp_path)
        path = tmp_path / "ae.pt"
    else:
        path = tmp_path / "sae.pt"
    torch.save({"W_enc": _Code()}, path)
    with pytest.raises(SAEFormatError, match=r"pickled Python objects.*refused.*convert it once.*state_dict"):
        load_sae(tmp_path)
    path.write_bytes(pickle.dumps(_Code()))
    with pytest.raises(SAEFormatError, match=r"refused|damaged"):
        load_sae(tmp_path)
    assert "never" not in capsys.readouterr().out


def test_missing_and_odd_weights_are_named(tmp_path: Path) -> None:
    sae = random_sae("gated")
    sae.save(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    del weights["b_mag"], weights["r_mag"]
    save_file({**weights, "extra": torch.zeros(1)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(SAEFormatError, match="lacks b_mag, r_mag and has extra"):
        load_sae(tmp_path)
    sparsify.save(random_sae("topk"), tmp_path / "sparsify")
    save_file({"b_dec": torch.zeros(12)}, tmp_path / "sparsify" / "sae.safetensors")
    with pytest.raises(SAEFormatError, match=r"lacks W_dec, encoder\.bias, encoder\.weight \(it has b_dec\)"):
        load_sae(tmp_path / "sparsify")


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    random_sae("topk").save(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights["b_enc"] = torch.zeros(19)
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(SAEFormatError, match=r"b_enc has shape \[19\] and the configuration says \[20\]"):
        load_sae(tmp_path)


def test_newer_format_and_damage(tmp_path: Path) -> None:
    random_sae("topk").save(tmp_path)
    record = json.loads((tmp_path / "cfg.json").read_text())
    record["metadata"]["attlas"]["format"] = 2
    (tmp_path / "cfg.json").write_text(json.dumps(record))
    with pytest.raises(SAEFormatError, match="has format 2, this attlas reads up to 1; upgrade"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(SAEFormatError, match="is not JSON"):
        load_sae(tmp_path)
    random_sae("topk").save(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(SAEFormatError, match="is damaged"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architecture": "temporal"}, "'temporal' is not supported"),
        ({"activation_fn": "tanh-relu"}, "'tanh-relu' is not supported"),
        ({"k": 99}, "k=99 must be between 1 and d_sae=20"),
        ({"d_sae": None}, "d_sae"),
    ],
)
def test_foreign_configurations_that_make_no_sense(change: dict[str, object], match: str, tmp_path: Path) -> None:
    random_sae("topk").save(tmp_path)
    record = json.loads((tmp_path / "cfg.json").read_text())
    record["metadata"].pop("attlas")
    record.update(change)
    (tmp_path / "cfg.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    with pytest.raises(SAEFormatError, match=match):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("module", "arch", "match"),
    [(sparsify, "gated", "plain TopK"), (original, "topk", "plain ReLU")],
)
def test_formats_refuse_what_they_cannot_hold(module: object, arch: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(SAEFormatError, match=match):
        module.save(random_sae(arch), tmp_path)  # type: ignore[attr-defined]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SAEFormatError, match="does not exist"):
        load_sae(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SAEFormatError, match=r"no SAE of a known format \(it holds notes\.txt\)"):
        load_sae(tmp_path)


def test_release_names() -> None:
    with pytest.raises(SAEFormatError, match="no release 'gpt2-small-hook-z-k'; did you mean 'gpt2-small-hook-z-kk'"):
        load_sae("saelens:gpt2-small-hook-z-k/blocks.5.hook_z")
    with pytest.raises(SAEFormatError, match=r"has no SAE 'blocks\.99\.hook_z'"):
        load_sae("saelens:gpt2-small-hook-z-kk/blocks.99.hook_z")


def test_release_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_lens

    def unreachable(*_: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", unreachable)
    with pytest.raises(SAEFormatError, match=r"could not be fetched .*it needs the network once"):
        load_sae("saelens:gpt2-small-hook-z-kk/blocks.5.hook_z")


def test_runs_of_a_workspace_are_opened(tmp_path: Path) -> None:
    sae = random_sae("topk")
    sae.save(tmp_path / "runs" / "sae-x" / "sae")
    assert load_sae(tmp_path / "runs" / "sae-x").hash == sae.hash
    assert saelens.detect(tmp_path / "runs" / "sae-x" / "sae")
