"""Answers of a ViT when patches are taken away, in an order of the caller's choice.

Patches go as tokens: before a layer their rows leave the residual stream, so later layers cannot see them. No fill
colour is needed, and what is left is exact *(ours; usual insertion/deletion tests grey out pixels)*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.vit.readout import Readout
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.interp.prefix import Suffix


@dataclass(frozen=True)
class RemovalCurve:
    """What is left of the answer at each share of patches removed.

    Attributes:
        fractions: [n_steps] shares of patches removed, rising.
        per_image: metric → float32 [n_steps, n_images]: accuracy (or knn_accuracy, probe_accuracy) with labels;
            probability of the true (else the clean prediction's) class with a classifier; similarity, the cosine of
            the embedding with the whole image's.
    """

    fractions: np.ndarray
    per_image: dict[str, np.ndarray]

    def auc(self, metric: str) -> np.ndarray:
        """Area under each image's curve by the trapezoid rule over the share removed, [n_images]."""
        area: np.ndarray = np.trapezoid(self.per_image[metric], self.fractions, axis=0)
        return area


@torch.no_grad()
def removal_curves(
    model: HookedModel,
    images: ImageDataset,
    readout: Readout,
    orders: Mapping[str, Tensor],
    *,
    fractions: Sequence[float],
    layer: int = 0,
    batch_size: int = 64,
    track: Track = no_track,
) -> dict[str, RemovalCurve]:
    """Run on what remains after each share of patches is removed.

    Args:
        model: a vision model.
        images: the images.
        readout: judges the answers.
        orders: name → int64 [n_images, n_patches], patches in the order they go.
        fractions: shares to remove; at least one patch always stays.
        layer: the layer before which they go.
        batch_size: images at a time.
        track: progress.

    Returns: name → curve.
    """
    suffix = Suffix(model, layer)
    prefix = model.cfg.n_prefix_tokens
    name = f"blocks.{layer}.hook_resid_pre"
    n_patches = next(iter(orders.values())).shape[1]
    counts = [min(n_patches - 1, round(f * n_patches)) for f in fractions]
    found: dict[str, dict[str, np.ndarray]] = {order: {} for order in orders}
    places = torch.arange(len(images), device=model.device).split(batch_size)
    for rows in track(places, f"removing patches before layer {layer}", len(places)):
        where = slice(int(rows[0]), int(rows[-1]) + 1)
        _, cache = model.run_with_cache(images.pixels[where], name)
        residual = cache[name]
        clean = suffix(residual)
        for order, ranking in orders.items():
            for step, count in enumerate(counts):
                kept = ranking[where, count:].to(residual.device).sort(-1).values
                patches = residual[:, prefix:].gather(1, kept[..., None].expand(-1, -1, residual.shape[-1]))
                after = suffix(torch.cat([residual[:, :prefix], patches], dim=1)) if count else clean
                values = {k: v.float() for k, v in readout.correct(after, rows).items()}
                if readout.n_classes:
                    values["probability"] = readout.probability(after, rows, clean)
                embeddings = (readout.embed(clean[1]), readout.embed(after[1]))
                values["similarity"] = torch.nn.functional.cosine_similarity(*embeddings, dim=-1)
                for metric, value in values.items():
                    shape = (len(counts), len(images))
                    store = found[order].setdefault(metric, np.zeros(shape, dtype=np.float32))
                    store[step, where] = value.cpu().numpy()
    shares = np.array(counts) / n_patches
    return {order: RemovalCurve(shares, values) for order, values in found.items()}


def random_orders(n_images: int, n_patches: int, seed: int) -> Tensor:
    """A random order of patches for each image, int64 [n_images, n_patches]."""
    return torch.rand(n_images, n_patches, generator=torch.Generator().manual_seed(seed)).argsort(-1)
