"""Files: what Attlas writes is read back bit-equal, and by the libraries themselves with the same function."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attlas.errors import SAEFormatError
from attlas.saes import ARCHITECTURES, SAE, SAEConfig, load_sae
from attlas.saes.architectures import create_sae
from attlas.saes.formats import FORMATS, dictionary_learning, original, saelens, sparsify

ARCHS = sorted(ARCHITECTURES)
HOOK = "blocks.2.attn.hook_z"


def random_sae(arch: str, **more: object) -> SAE:
    generator = torch.Generator().manual_seed(3)
    facts = {"hook_name": HOOK, "model_name": "gpt2-mini", "n_heads": 3, "d_head": 4, "context_size": 64}
    sae = create_sae(SAEConfig(**{"d_in": 12, "d_sae": 20, "k": 4, "arch": arch, **facts, **more}))
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() * 0.3 if name == "threshold" else noise * 0.5)
        if arch in ("batchtopk", "matryoshka"):
            sae.threshold.fill_(0.3)
    return sae


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


@pytest.mark.parametrize("arch", ARCHS)
def test_saelens_loads_ours(arch: str, tmp_path: Path, x: torch.Tensor) -> None:
    from sae_lens import SAE as TheirSAE

    sae = random_sae(arch)
    sae.save(tmp_path)
    theirs = TheirSAE.load_from_disk(tmp_path)
    assert theirs.cfg.metadata.hook_name == HOOK
    assert theirs.cfg.metadata.model_name == "gpt2-mini"
    z = x.unflatten(-1, (3, 4))
    torch.testing.assert_close(theirs.encode(z), sae.encode(z))
    torch.testing.assert_close(theirs(z), sae(z))


THEIR_CONFIGS = {
    "standard": ("StandardSAEConfig", {}),
    "gated": ("GatedSAEConfig", {}),
    "jumprelu": ("JumpReLUSAEConfig", {}),
    "topk": ("TopKSAEConfig", {"k": 4}),
    "topk-rescaled": ("TopKSAEConfig", {"k": 4, "rescale_acts_by_decoder_norm": True}),
}


@pytest.mark.parametrize("more", [{}, {"apply_b_dec_to_input": False}, {"normalize_activations": "layer_norm"}])
@pytest.mark.parametrize("kind", sorted(THEIR_CONFIGS))
def test_ours_loads_saelens(kind: str, more: dict[str, object], tmp_path: Path, x: torch.Tensor) -> None:
    import sae_lens

    name, fields = THEIR_CONFIGS[kind]
    cfg = getattr(sae_lens, name)(d_in=12, d_sae=20, **fields, **more)
    theirs = sae_lens.SAE.from_dict(cfg.to_dict())
    for name, parameter in theirs.named_parameters():
        noise = torch.randn_like(parameter) * 0.5
        parameter.data = noise.abs() if name == "threshold" else noise
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    if kind != "topk-rescaled":
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), atol=1e-5, rtol=1e-5)
    ours.save(tmp_path / "again")
    torch.testing.assert_close(sae_lens.SAE.load_from_disk(tmp_path / "again")(x), theirs(x), atol=1e-5, rtol=1e-5)


TRAINED = ["standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk"]


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.5
        parameter.data = noise.abs() if name == "threshold" else noise


def training_checkpoint(kind: str, folder: Path, **fields: Any) -> Any:
    """What SAELens's trainer leaves: the training SAE itself, with its configuration."""
    from sae_lens.registry import get_sae_training_class

    cls, cfg_cls = get_sae_training_class(kind)
    if "matryoshka" in kind:
        fields["matryoshka_widths"] = [10, 20]
    if "topk" in kind:
        fields["k"] = 4
    theirs = cls(cfg_cls(d_in=12, d_sae=20, **fields))
    randomise(theirs)
    if hasattr(theirs, "topk_threshold"):
        theirs.topk_threshold = torch.tensor(0.6, dtype=torch.double)
    theirs.save_model(folder)
    return theirs


def their_inference(theirs: Any, folder: Path) -> Any:
    from sae_lens import SAE as TheirSAE

    theirs.save_inference_model(folder)
    return TheirSAE.load_from_disk(folder)


@pytest.mark.parametrize("kind", TRAINED)
def test_saelens_training_checkpoint(kind: str, tmp_path: Path, x: torch.Tensor) -> None:
    trainer = training_checkpoint(kind, tmp_path / "checkpoint")
    theirs = their_inference(trainer, tmp_path / "inference")
    torch.testing.assert_close(load_sae(tmp_path / "checkpoint")(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", TRAINED)
def test_scale_beside_a_training_checkpoint(kind: str, subtract: bool, tmp_path: Path) -> None:
    """SAELens folds the factor at the end of training; Attlas folds it into the checkpoint to the same SAE."""
    how = {"normalize_activations": "expected_average_only_in", "apply_b_dec_to_input": subtract}
    theirs = training_checkpoint(kind, tmp_path / "checkpoint", **how)
    (tmp_path / "checkpoint" / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    x = torch.randn(40, 12) * 4
    ours = load_sae(tmp_path / "checkpoint")
    theirs.fold_activation_norm_scaling_factor(0.25)
    folded = their_inference(theirs, tmp_path / "inference")
    torch.testing.assert_close(ours(x), folded(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.encode(x), folded.encode(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", TRAINED)
def test_whitening_beside_a_training_checkpoint(kind: str, subtract: bool, tmp_path: Path) -> None:
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

    how = {"normalize_activations": "covariance_whitening", "apply_b_dec_to_input": subtract}
    theirs = training_checkpoint(kind, tmp_path / "checkpoint", **how)
    matrix = torch.linalg.qr(torch.randn(12, 12).double()).Q * torch.linspace(0.5, 2, 12)
    whitening = ActivationWhitening(torch.randn(12).double(), matrix.contiguous(), matrix.inverse().contiguous())
    scaler = ActivationScaler(whitening=whitening)
    scaler.save(str(tmp_path / "checkpoint" / "activation_scaler.json"))
    x = torch.randn(40, 12)
    ours = load_sae(tmp_path / "checkpoint")
    theirs.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
    folded = their_inference(theirs, tmp_path / "inference")
    torch.testing.assert_close(ours(x), folded(x), atol=1e-4, rtol=1e-4)


def test_every_key_of_saelens_training_classes_is_known(tmp_path: Path) -> None:
    """A new release that adds a field makes this fail, so that somebody decides what the field does."""
    import dataclasses

    from sae_lens.registry import get_sae_training_class

    from attlas.saes.formats.fields import SAELENS_HARMLESS

    for kind in TRAINED:
        fields = {f.name for f in dataclasses.fields(get_sae_training_class(kind)[1])}
        assert fields <= saelens._READ | SAELENS_HARMLESS, kind


@pytest.mark.parametrize("topk", [False, True])
def test_saelens_before_6(topk: bool, tmp_path: Path, x: torch.Tensor) -> None:
    """Old keys (hook_point, activation_fn_str), read the way SAELens itself reads them."""
    from sae_lens import SAE as TheirSAE

    sae = random_sae("topk" if topk else "standard")
    save_file({n: t.contiguous() for n, t in sae.state_dict().items()}, tmp_path / "sae_weights.safetensors")
    old = {
        "model_name": "gpt2-small",
        "hook_point": HOOK,
        "hook_point_layer": 2,
        "d_in": 12,
        "d_sae": 20,
        "dtype": "torch.float32",
        "activation_fn_str": "topk" if topk else "relu",
        "activation_fn_kwargs": {"k": 4} if topk else {},
        "normalize_activations": False,
        "context_size": 128,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    ours = load_sae(tmp_path)
    assert (ours.cfg.hook_name, ours.cfg.model_name, ours.cfg.context_size) == (HOOK, "gpt2-small", 128)
    old["dtype"] = "float32"
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    theirs = TheirSAE.load_from_disk(tmp_path)
    torch.testing.assert_close(ours(x), theirs(x.unflatten(-1, (3, 4))).flatten(-2))
    torch.testing.assert_close(ours(x), sae(x))


def _writable(name: str) -> list[str]:
    only = {"sparsify": ["topk"], "original": ["standard"]}
    return only.get(name, ARCHS)


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
