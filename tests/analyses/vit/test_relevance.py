"""Gradient-weighted relevance against autograd through Hugging Face's own eager attention."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import spearmanr

from attlas.analyses.vit.relevance import class_relevance, class_relevance_of
from attlas.data.images.dataset import ImageDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel, load_model


def _tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=5, initializer_range=0.3)
    return transformers.ViTForImageClassification(config).eval()


def _brute_force(hf: Any, pixels: torch.Tensor, chosen: int) -> np.ndarray:
    """One image in float64: retained gradients of HF's attention weights, loops over layers and heads."""
    twin = type(hf)(copy.deepcopy(hf.config)).eval()
    twin.load_state_dict(hf.state_dict())
    twin = twin.double()
    twin.set_attn_implementation("eager")
    found = twin(pixels[None].double(), output_attentions=True)
    for attention in found.attentions:
        attention.retain_grad()
    found.logits[0, chosen].backward()
    relevance = np.eye(found.attentions[0].shape[-1])
    for attention in found.attentions:
        heads = [np.maximum((a * g).numpy(), 0) for a, g in zip(attention[0].detach(), attention.grad[0], strict=True)]
        relevance = relevance + np.mean(heads, axis=0) @ relevance
    row: np.ndarray = relevance[0, 1:]
    return row


@pytest.mark.parametrize("kind", ["tiny", "vit-mini"])
def test_relevance_equals_autograd_through_eager_attention(
    kind: str, vit_mini: HookedModel, glyphs: ImageDataset
) -> None:
    model = load_model(_tiny()) if kind == "tiny" else vit_mini
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 16, 16, generator=draw) if kind == "tiny" else glyphs.pixels[:3]
    classes = torch.tensor([1, 4, 0])
    found = class_relevance(model, pixels, classes).numpy()
    for image in range(3):
        expected = _brute_force(model.hf, pixels[image], int(classes[image]))
        np.testing.assert_allclose(found[image], expected, rtol=1e-3, atol=1e-5 * expected.max())
    with torch.no_grad():
        top = model(pixels).argmax(-1)
    torch.testing.assert_close(class_relevance(model, pixels), class_relevance(model, pixels, top))


def test_it_depends_on_the_class_and_on_the_weights(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    """Controls: another class gives another map; with random weights the map has little left of the model's own."""
    few = glyphs.take(6)
    own = class_relevance_of(vit_mini, few, batch_size=4)
    other = class_relevance(vit_mini, few.pixels, (vit_mini(few.pixels).argmax(-1) + 1) % vit_mini.cfg.n_classes)
    assert not torch.allclose(own, other, rtol=0.05)
    torch.manual_seed(3)
    random = load_model(type(vit_mini.hf)(vit_mini.hf.config).eval())
    rho = [spearmanr(a, b).statistic for a, b in zip(own, class_relevance_of(random, few), strict=True)]
    assert abs(np.mean(rho)) < 0.5


def test_what_has_no_class_is_refused(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    with pytest.raises(ConfigError, match="has 0–"):
        class_relevance(vit_mini, glyphs.pixels[:1], torch.tensor([99]))
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    backbone = load_model(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval())
    with pytest.raises(ConfigError, match="no classifier"):
        class_relevance(backbone, torch.randn(1, 3, 16, 16))
