"""Pictures of a vision feature's examples: the right images, and activations that lie where the encoder says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from attlas.analyses.features.describe import FeaturesConfig, features
from attlas.data.images.dataset import ImageDataset, shrink
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.saes.base import SAE


def test_pictures_are_those_of_the_examples(
    vit_mini: HookedModel, glyphs: ImageDataset, random_sae: Callable[..., SAE], tmp_path: Path
) -> None:
    sae = random_sae(vit_mini, 2, k=4)
    few = glyphs.take(10)
    result = features(vit_mini, sae, few, FeaturesConfig(n_top=3))
    workspace = Workspace(tmp_path / "w")
    run = result.save(workspace, vit_mini.ref, few.ref)
    assert run.summary["grid"] == [8, 8]
    arrays = workspace.read_arrays(run, "pictures")
    examples = workspace.read_table(run, "examples").to_pandas()
    assert set(arrays["images"].tolist()) == set(examples.sequence)
    np.testing.assert_array_equal(arrays["thumbnails"], few.thumbnails[arrays["images"]])
    row = examples[(examples.stratum == "top") & (examples["rank"] == 0)].iloc[0]
    z = vit_mini.capture(few.pixels[[row.sequence]], "blocks.2.attn.hook_z")["blocks.2.attn.hook_z"]
    with torch.no_grad():
        acts = sae.encode(sae.flatten_heads(z))[0, :, row.feature].numpy()
    np.testing.assert_allclose(row.activations, acts, atol=1e-5)  # one prefix token, then 8 × 8 patches
    assert len(row.activations) == 1 + 64


def test_text_keeps_no_pictures(
    gpt2_mini: HookedModel, val_tokens: TokenDataset, random_sae: Callable[..., SAE], tmp_path: Path
) -> None:
    few = val_tokens.take(2)
    result = features(gpt2_mini, random_sae(gpt2_mini, 1, k=2), few, FeaturesConfig(n_top=1, per_band=1))
    run = result.save(Workspace(tmp_path / "w"), gpt2_mini.ref, few.ref)
    assert run.arrays == {} or "pictures" not in run.arrays
    assert "grid" not in run.summary


def test_shrink_averages_blocks() -> None:
    draw = np.random.default_rng(0).integers(0, 256, size=(2, 130, 70, 3)).astype(np.uint8)
    small = shrink(draw, longest=64)
    assert small.shape == (2, 43, 23, 3)
    np.testing.assert_array_equal(small[1, 4, 7], draw[1, 12:15, 21:24].mean((0, 1)).astype(np.uint8))
    assert shrink(draw[:, :64, :64]) is not None
    np.testing.assert_array_equal(shrink(draw[:, :64, :64]), draw[:, :64, :64])
