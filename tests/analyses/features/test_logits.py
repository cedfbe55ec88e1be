"""Directions on the logits, for every way a vision classifier reads its tokens, against edits of the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from attlas.analyses.features.logits import logit_effects, readout_weight, residual_directions
from attlas.data.dataset import Batch
from attlas.errors import UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.saes.evaluation.behaviour import CleanRun

SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
COMMON = {**SHAPE, "patch_size": 4, "image_size": 16, "num_labels": 5}
KINDS: dict[str, Any] = {
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**COMMON)),
    "deit": lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**COMMON)),
    "deit with teacher": lambda: tf.DeiTForImageClassificationWithTeacher(tf.DeiTConfig(**COMMON)),
    "ijepa": lambda: tf.IJepaForImageClassification(tf.IJepaConfig(**COMMON)),
    "dinov2": lambda: tf.Dinov2ForImageClassification(tf.Dinov2Config(**COMMON)),
    "registers": lambda: tf.Dinov2WithRegistersForImageClassification(
        tf.Dinov2WithRegistersConfig(**COMMON, num_register_tokens=3)
    ),
}


def tiny(kind: str) -> HookedModel:
    torch.manual_seed(3)
    hf = KINDS[kind]()
    for parameter in hf.parameters():
        parameter.data.normal_(0.1, 0.3)
    return load_model(hf.double())


def pixels(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_direction_at_every_token_moves_the_logits_so(kind: str) -> None:
    model, images = tiny(kind), pixels()
    direction = torch.randn(24, dtype=torch.float64)
    handle = model.final_norm.register_forward_hook(lambda _m, _a, out: out + direction)
    moved = model(images)
    handle.remove()
    expected = moved - model(images)
    assert torch.allclose(expected, (direction @ readout_weight(model)).expand_as(expected), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoder_rows_reach_the_residual_stream_so(kind: str) -> None:
    model, images = tiny(kind), pixels(1)
    W_dec = torch.randn(6, 24, dtype=torch.float64)
    name, written = "blocks.1.attn.hook_z", "blocks.1.hook_attn_out"
    before = model.capture(images, written)[written]
    found = residual_directions(model, W_dec, name)
    for row, expected in zip(W_dec, found, strict=True):
        with model.hooks({name: lambda z, _name, row=row: z + row.view(4, 6)}):
            moved = model.capture(images, written)[written] - before
        assert torch.allclose(moved, expected.expand_as(moved), atol=1e-9)
    values, ids, _, _ = logit_effects(model, W_dec, name, 5)
    direction = (found - found.mean(-1, keepdim=True)) * model.final_norm.weight
    assert torch.allclose(values.double(), (direction @ readout_weight(model)).topk(5).values, atol=1e-4)
    assert ids.shape == (6, 5)


def test_a_classifier_of_anything_else_is_refused_by_name() -> None:
    model = tiny("vit")
    model.structure.unembed.in_features = 72  # type: ignore[union-attr,assignment]
    model.structure.unembed.weight = nn.Parameter(torch.zeros(5, 72))  # type: ignore[union-attr]
    with pytest.raises(UnsupportedModelError, match="reads 72 numbers, not d_model 24"):
        readout_weight(model)


@torch.no_grad()
def test_a_backbone_without_cls_is_read_by_its_mean() -> None:
    torch.manual_seed(0)
    model = load_model(tf.IJepaModel(tf.IJepaConfig(**COMMON)))
    images = pixels(2).float()
    assert torch.equal(
        CleanRun(model, Batch(images, None, None, torch.arange(len(images))), None, []).clean, model(images).mean(1)
    )
