"""One image under every head: against Hugging Face's eager attention and passes pruned by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers
from scipy.spatial.distance import cosine, jensenshannon

from attlas.analyses.vit.one_image import answer, change, feature_heat, image_attention
from attlas.analyses.vit.rollout import rollout
from attlas.data.images.dataset import ImageDataset
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.saes.base import SAE


def test_maps_are_those_of_eager_attention(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    pixels = glyphs.pixels[3]
    seen = image_attention(vit_mini, pixels)
    eager = type(vit_mini.hf)(vit_mini.hf.config).eval()
    eager.load_state_dict(vit_mini.hf.state_dict())
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager(pixels[None], output_attentions=True).attentions
    rows, columns = seen.grid
    for layer, attention in enumerate(attentions):
        np.testing.assert_allclose(seen.patterns[layer], attention[0].numpy(), atol=1e-5)
        from_cls = attention[0, :, 0, 1:].reshape(-1, rows, columns).numpy()
        np.testing.assert_allclose(seen.maps(None)[layer], from_cls, atol=1e-5)
        from_patch = attention[0, :, 1 + 13, 1:].reshape(-1, rows, columns).numpy()
        np.testing.assert_allclose(seen.maps(13)[layer], from_patch, atol=1e-5)
    np.testing.assert_allclose(seen.rollout.ravel(), rollout(vit_mini, pixels[None])[0].numpy(), atol=1e-6)
    with pytest.raises(ConfigError, match="not on the grid"):
        seen.maps(rows * columns)


def test_pruned_answers_equal_weights_set_to_zero(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    pixels, heads = glyphs.pixels[5], [(0, 1), (0, 4), (2, 3)]
    before, after = answer(vit_mini, pixels), answer(vit_mini, pixels, heads)
    twin = type(vit_mini.hf)(vit_mini.hf.config).eval()
    twin.load_state_dict(vit_mini.hf.state_dict())
    other = load_model(twin)
    size = other.cfg.d_head
    with torch.no_grad():
        for layer, head in heads:  # no z of this head reaches the residual stream
            other.layers[layer].out_proj.weight[:, head * size : (head + 1) * size] = 0
        by_hand = twin(pixels[None]).logits[0].double().softmax(-1).numpy()
        clean = vit_mini.hf(pixels[None]).logits[0].double().softmax(-1).numpy()
    assert after.probabilities is not None
    np.testing.assert_allclose(after.probabilities, by_hand, atol=1e-5)
    found = change(before, after)
    assert found["js"] == pytest.approx(jensenshannon(clean, by_hand) ** 2, abs=1e-5)
    assert found["prob_drop"] == pytest.approx(clean.max() - by_hand[clean.argmax()], abs=1e-5)
    assert found["cls_distance"] == pytest.approx(cosine(before.embedding, after.embedding), abs=1e-5)
    assert change(before, before)["js"] == 0
    with pytest.raises(ConfigError, match=r"head 4\.0"):
        answer(vit_mini, pixels, [(4, 0)])


def test_pooled_and_registers_and_oblong_grids() -> None:
    common = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    config = transformers.Dinov2WithRegistersConfig(**common, image_size=16, patch_size=4, num_register_tokens=3)
    registers = load_model(transformers.Dinov2WithRegistersModel(config).eval())
    seen = image_attention(registers, torch.randn(3, 16, 24))
    assert (seen.grid, seen.n_prefix) == ((4, 6), 4)
    assert seen.maps(None).shape == (2, 4, 4, 6)
    np.testing.assert_array_equal(seen.maps(23)[1, 2], seen.patterns[1, 2, 4 + 23, 4:].reshape(4, 6))
    assert seen.answer.probabilities is None
    assert set(change(seen.answer, answer(registers, torch.randn(3, 16, 24), [(1, 1)]))) == {"cls_distance"}


def test_feature_heat_is_the_encoders(
    vit_mini: HookedModel, glyphs: ImageDataset, random_sae: Callable[..., SAE]
) -> None:
    sae = random_sae(vit_mini, 2)
    found = feature_heat(vit_mini, sae, glyphs.pixels[0], n_top=5)
    z = vit_mini.capture(glyphs.pixels[:1], "blocks.2.attn.hook_z")["blocks.2.attn.hook_z"].flatten(-2)[0, 1:]
    acts = sae.encode(z).detach().numpy()
    order = np.argsort(-acts.max(0), kind="stable")[:5]
    assert [f.feature for f in found] == order.tolist()
    for f in found:
        np.testing.assert_allclose(f.heat.ravel(), acts[:, f.feature], atol=1e-5)
    assert [f.feature for f in feature_heat(vit_mini, sae, glyphs.pixels[0], features=[7, 9999])] == [7]


def test_language_models_are_refused(gpt2_mini: HookedModel) -> None:
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        image_attention(gpt2_mini, torch.zeros(3, 8, 8))
