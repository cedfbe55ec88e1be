"""Importance of ViT heads by pruning one at a time (Li et al. 2023, arXiv 2303.13731)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.bootstrap import Interval
from attlas.analyses.head_effects import mean_z
from attlas.analyses.prefix_reuse import attend_once
from attlas.analyses.vit_readout import Answer, Readout, jensen_shannon, make_readout, metric_mean
from attlas.data.images import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.interp.suffix import Suffix

# Rows of a forward pass: ablations of a layer share one, since its attention is the same for all, while their activations
# are few enough for the cache (CPU).
ROWS = {"cpu": 128, "cuda": 1024}

__all__ = ["HeadImportance", "head_importance", "jensen_shannon", "mean_z"]


@dataclass(frozen=True)
class HeadImportance:
    """Effect of one ablation of every head.

    Attributes:
        per_image: metric → float32 [n_images, layer, head], the main metric first.
        ablation: "zero" or "mean".
    """

    per_image: dict[str, np.ndarray]
    ablation: str

    def intervals(self, seed: int, n_samples: int = 1000) -> dict[str, Interval]:
        """metric → (mean, low, high) [layer, head], 95 % interval over images (see analyses.bootstrap)."""
        return {m: metric_mean(m, v, seed=seed, n_samples=n_samples) for m, v in self.per_image.items()}


@torch.no_grad()
def head_importance(
    model: HookedModel,
    images: ImageDataset,
    *,
    ablations: Sequence[str] = ("zero", "mean"),
    batch_size: int = 32,
    readout: Readout | None = None,
    track: Track = no_track,
) -> list[HeadImportance]:
    """Ablate every head's z over an image set, each from the residual stream kept at its layer.

    "zero" sets the head's slice of hook_z to 0, "mean" to its mean over all images and positions. Metrics per image:
    js, Jensen-Shannon divergence of the class distributions in nats; prob_drop, fall of the true class's probability
    (of the clean prediction's, without labels); accuracy_drop, correct before minus correct after; cls_distance,
    1 − cosine of the normed final state of CLS (of the patches' mean, where there is no CLS). A backbone with labelled
    images has knn_drop and probe_drop instead of the first three: accuracy of probes on its embeddings (vit_probe).
    """
    cfg = model.cfg
    readout = readout or make_readout(model, images, min(batch_size, 32))
    means = mean_z(model, images, batch_size) if "mean" in ablations else None
    shape = (len(images), cfg.n_layers, cfg.n_heads)
    found = {a: {m: np.zeros(shape, dtype=np.float32) for m in readout.metrics} for a in ablations}
    suffixes = [Suffix(model, layer) for layer in range(cfg.n_layers)]
    copies = max(1, ROWS.get(model.device.type, 128) // batch_size)
    places = torch.arange(len(images), device=model.device).split(batch_size)
    for rows in track(places, f"pruning {cfg.n_layers * cfg.n_heads} heads", len(places)):
        where = slice(int(rows[0]), int(rows[-1]) + 1)
        _, cache = model.run_with_cache(images.pixels[where], "blocks.*.hook_resid_pre")
        clean = suffixes[-1](cache[f"blocks.{cfg.n_layers - 1}.hook_resid_pre"])
        for layer, suffix in enumerate(suffixes):
            residual = cache.pop(f"blocks.{layer}.hook_resid_pre")
            wanted = [(head, ablation) for head in range(cfg.n_heads) for ablation in ablations]
            for low in range(0, len(wanted), copies):
                group = wanted[low : low + copies]
                fills = [(head, means[layer, head] if a == "mean" and means is not None else 0.0) for head, a in group]
                for (head, ablation), pruned in zip(
                    group, _without(model, layer, fills, suffix, residual), strict=True
                ):
                    for name, value in readout.compare(clean, pruned, rows).items():
                        found[ablation][name][where, layer, head] = value.float().cpu().numpy()
    return [HeadImportance(found[a], a) for a in ablations]


def _without(
    model: HookedModel, layer: int, fills: list[tuple[int, Tensor | float]], suffix: Suffix, residual: Tensor
) -> list[Answer]:
    """Answers with one head's z replaced, a copy of the batch for each (head, value); the layer attends once for all."""

    def ablate(z: Tensor) -> None:
        for copy, (head, fill) in zip(z.chunk(len(fills)), fills, strict=True):
            copy[:, :, head] = fill

    with attend_once(model, layer, len(fills), ablate):
        logits, normed = suffix(residual.repeat(len(fills), 1, 1))
    return list(zip(logits.chunk(len(fills)), normed.chunk(len(fills)), strict=True))
