"""Drops measured together, backbones by their features, and what is silent already is not chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.attention.head_entropy import entropy
from attlas.analyses.common.losses import quality
from attlas.analyses.pruning.checkpoint import export
from attlas.analyses.pruning.measure import measure_drops
from attlas.analyses.pruning.orders import available
from attlas.analyses.pruning.scores import Scores
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.errors import UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.interp.attended import attended
from attlas.interp.drop import Drop, masked


def test_what_is_silent_is_not_chosen(gpt2_mini: HookedModel, val_tokens: TokenDataset, tmp_path: Path) -> None:
    folder = export(gpt2_mini, Drop(attn=(2,), heads=((0, 3),)), tmp_path / "p", format="stock", verify=False).folder
    again = load_model(folder, device="cpu")
    assert [layer for _, layer in available(again, "attn")] == [0, 1, 3]
    assert len(available(again, "head")) == len(available(again, "group")) == 24 - 6 - 1
    scores = Scores(again, TokenDataset.from_tokens(val_tokens.tokens[:1], "one"))
    assert set(scores.of("joint")) == {*available(again, "joint")}
    assert set(scores.of("group")) == {*available(again, "group")}


@pytest.mark.parametrize("kind", ["text", "images"])
def test_drops_measured_together_equal_drops_alone(
    gpt2_mini: HookedModel, vit_mini: HookedModel, val_tokens: TokenDataset, glyphs: ImageDataset, kind: str
) -> None:
    model, data = (gpt2_mini, val_tokens) if kind == "text" else (vit_mini, glyphs)
    drops = [Drop(attn=(3,)), Drop(blocks=(1,), mlp=(2,)), Drop(heads=((2, 1), (3, 0))), Drop(attn=(3,))]
    whole, found, kind = measure_drops(model, data, drops, batch_size=8)
    assert kind == "cross-entropy"
    np.testing.assert_allclose(whole.total, quality(model, data), rtol=1e-5)
    for drop, values in zip(drops, found, strict=True):
        with masked(model, drop):
            np.testing.assert_allclose(values.total, quality(model, data), rtol=1e-5)


def test_random_draws_on_a_part_are_the_first_of_the_whole(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    drops, data = [Drop(attn=(3,)), Drop(attn=(2,)), Drop(attn=(3,))], val_tokens.take(5)
    whole, (few, all_, part), _ = measure_drops(gpt2_mini, data, drops, batch_size=2, n_first=[3, 5, 5])
    assert [len(found.loss) for found in (whole, few, all_, part)] == [5, 3, 5, 5]
    np.testing.assert_array_equal(few.loss, part.loss[:3])
    with torch.no_grad(), masked(gpt2_mini, Drop(attn=(2,))):
        expected = gpt2_mini.cross_entropy(data.tokens).double().mean(1).numpy()
    np.testing.assert_allclose(all_.loss, expected, atol=1e-5)


def test_a_backbone_is_measured_by_its_features(glyphs: ImageDataset) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 12, "patch_size": 4}
    model = load_model(Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, initializer_range=0.2)).eval())
    pixels = torch.randn(5, 3, 12, 12)
    data = ImageDataset(**{**vars(glyphs), "pixels": pixels, "labels": None})
    whole, (one,), kind = measure_drops(model, data, [Drop(attn=(0,))], batch_size=2)
    assert kind == "1 − cosine of features"
    assert whole.total[0] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        dense = model(pixels).double()
        with masked(model, Drop(attn=(0,))):
            pruned = model(pixels).double()
    a, b = (torch.cat([x[:, 0], x[:, 1:].mean(1)], -1) for x in (dense, pruned))
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    assert one.total[0] == pytest.approx(float(1 - cosine.mean()), abs=1e-5)
    assert np.isnan(one.total[1])
    assert one.total[2] == 5


def test_maps_of_absent_heads_have_no_numbers(gpt2_mini: HookedModel, val_tokens: TokenDataset, tmp_path: Path) -> None:
    """A compact model's entropy is that of the masked model where heads are, and empty where none are."""
    drop, data = Drop(attn=(1,), heads=((0, 2),)), val_tokens.take(2)
    again = load_model(export(gpt2_mini, drop, tmp_path / "p", verify=False).folder, device="cpu")
    found = entropy(again, data).columns["entropy"]
    with masked(gpt2_mini, drop):
        expected = entropy(gpt2_mini, data).columns["entropy"]
    expected[1] = expected[0, 2] = np.nan
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(UnsupportedModelError, match=r"lacks 7 heads, such as 0\.2"):
        next(attended(again, data.tokens))
