"""SAELens reads what Attlas writes, and the other way round: its inference and training files, also those before 6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from attlas.saes import load_sae
from attlas.saes.formats import saelens

from .made import ARCHS, HOOK, random_sae


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(7, 5, 12, generator=torch.Generator().manual_seed(4))


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
