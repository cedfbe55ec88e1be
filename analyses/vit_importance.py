"""Importance of ViT heads by pruning one at a time (Li et al. 2023, arXiv 2303.13731)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.bootstrap import bootstrap_mean
from attlas.data.images import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.interp.suffix import Suffix

CLASS_METRICS = ("prob_drop", "js", "accuracy_drop")


@dataclass(frozen=True)
class HeadImportance:
    """Effect of one ablation of every head.

    Attributes:
        per_image: metric → float32 [n_images, layer, head].
        ablation: "zero" or "mean".
    """

    per_image: dict[str, np.ndarray]
    ablation: str

    def intervals(self, seed: int, n_samples: int = 1000) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """metric → (mean, low, high) [layer, head], 95 % percentile bootstrap over images."""
        return {m: bootstrap_mean(v, seed=seed, n_samples=n_samples) for m, v in self.per_image.items()}


@torch.no_grad()
def head_importance(
    model: HookedModel,
    images: ImageDataset,
    *,
    ablations: Sequence[str] = ("zero", "mean"),
    batch_size: int = 128,
    track: Track = no_track,
) -> list[HeadImportance]:
    """Ablate every head's z over an image set, each from the residual stream kept at its layer.

    "zero" sets the head's slice of hook_z to 0, "mean" to its mean over all images and positions. Metrics per image:
    prob_drop, fall of the true class's probability (of the clean prediction's, without labels); js, Jensen-Shannon
    divergence of the class distributions in nats; accuracy_drop, correct before minus correct after (labels only);
    cls_distance, 1 − cosine of the first prefix token's normed final state. A backbone without classifier has
    cls_distance alone.
    """
    cfg = model.cfg
    has_head = cfg.n_classes > 0
    metrics = ["cls_distance"]
    if has_head:
        metrics += [m for m in CLASS_METRICS if m != "accuracy_drop" or images.labels is not None]
    means = _mean_z(model, images, batch_size) if "mean" in ablations else None
    shape = (len(images), cfg.n_layers, cfg.n_heads)
    found = {a: {m: np.zeros(shape, dtype=np.float32) for m in metrics} for a in ablations}
    suffixes = [Suffix(model, layer) for layer in range(cfg.n_layers)]
    starts = range(0, len(images), batch_size)
    for start in track(starts, f"pruning {cfg.n_layers * cfg.n_heads} heads", len(starts)):
        rows = slice(start, start + batch_size)
        pixels = images.pixels[rows].to(model.device)
        labels = images.labels[rows].to(model.device) if images.labels is not None else None
        _, cache = model.run_with_cache(pixels, "blocks.*.hook_resid_pre")
        clean = suffixes[-1](cache[f"blocks.{cfg.n_layers - 1}.hook_resid_pre"])
        for layer, suffix in enumerate(suffixes):
            for head in range(cfg.n_heads):
                for ablation in ablations:
                    fill = means[layer, head] if ablation == "mean" and means is not None else 0.0
                    pruned = _with_head(model, layer, head, fill, suffix, cache[f"blocks.{layer}.hook_resid_pre"])
                    for name, value in _compare(clean, pruned, labels, has_head).items():
                        found[ablation][name][rows, layer, head] = value.float().cpu().numpy()
    return [HeadImportance(found[a], a) for a in ablations]


def _mean_z(model: HookedModel, images: ImageDataset, batch_size: int) -> Tensor:
    """Mean of hook_z over images and positions, [layer, head, d_head]."""
    cfg = model.cfg
    total = torch.zeros(cfg.n_layers, cfg.n_heads, cfg.d_head, dtype=torch.float64)
    count = 0
    for pixels in images.batches(batch_size):
        cache = model.capture(pixels, "blocks.*.attn.hook_z")
        for layer in range(cfg.n_layers):
            total[layer] += cache[f"blocks.{layer}.attn.hook_z"].double().sum((0, 1)).cpu()
        count += pixels.shape[0] * cache["blocks.0.attn.hook_z"].shape[1]
    return (total / count).to(model.device, model.dtype)


def _with_head(
    model: HookedModel, layer: int, head: int, fill: Tensor | float, suffix: Suffix, residual: Tensor
) -> tuple[Tensor, Tensor]:
    def ablate(z: Tensor, _name: str) -> Tensor:
        z = z.clone()
        z[:, :, head] = fill
        return z

    with model.hooks({f"blocks.{layer}.attn.hook_z": ablate}):
        return suffix(residual)


def _compare(
    clean: tuple[Tensor, Tensor], pruned: tuple[Tensor, Tensor], labels: Tensor | None, has_head: bool
) -> dict[str, Tensor]:
    (logits, state), (logits_after, state_after) = clean, pruned
    cosine = torch.nn.functional.cosine_similarity(state[:, 0].float(), state_after[:, 0].float(), dim=-1)
    result = {"cls_distance": 1 - cosine}
    if not has_head:
        return result
    p, q = logits.float().softmax(-1), logits_after.float().softmax(-1)
    true = labels if labels is not None else p.argmax(-1)
    rows = torch.arange(len(true), device=true.device)
    result["prob_drop"] = p[rows, true] - q[rows, true]
    result["js"] = jensen_shannon(p, q)
    if labels is not None:
        result["accuracy_drop"] = (p.argmax(-1) == labels).float() - (q.argmax(-1) == labels).float()
    return result


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions over the last axis, in nats (0 … log 2)."""
    middle = (p + q) / 2
    terms = [torch.special.xlogy(x, x / middle.clamp_min(1e-38)).sum(-1) for x in (p, q)]
    return (terms[0] + terms[1]) / 2
