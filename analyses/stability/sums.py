"""Statistics of a tracker's check as sums, so that ranks can be added up: one all_reduce a check.

Quantiles come from a histogram of entropies, 2,048 bins over 0 … 16 nats (log T up to T = 8.9 million); a quantile is
exact to a bin, 0.008 nats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.kernels import AttentionStats

N_BINS = 2048
MAX_NATS = 16.0
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# What is summed over queries, in the order of the array; the histogram follows.
SUMS = (
    "n_queries",
    "n_normalized",
    "n_nonfinite",
    "entropy",
    "normalized",
    "lower_bound",
    "weight_bound",
    "max_weight",
    "sink_mass",
)
WIDTH = len(SUMS) + N_BINS


def sums_of(stats: AttentionStats, weight_bound: Tensor | None) -> Tensor:
    """Sums over batch and queries, and the histogram of entropies: float64 [H, WIDTH] on the statistics' device.

    Queries without a key are left out. Those with one key are left out of the normalised mean.

    Args:
        weight_bound: [B, H, T] nats, or None.
    """
    entropy = stats.entropy.double()
    reachable = stats.n_keys > 0
    finite = torch.isfinite(entropy) & torch.isfinite(stats.max_weight)
    valid = reachable & finite
    ranked = valid & (stats.n_keys > 1)
    columns = {
        "n_queries": valid,
        "n_normalized": ranked,
        "n_nonfinite": reachable & ~finite,
        "entropy": torch.where(valid, entropy, 0),
        "normalized": torch.where(ranked, stats.normalized_entropy.double(), 0),
        "lower_bound": torch.where(valid, stats.lower_bound.double(), 0),
        "weight_bound": torch.full_like(entropy, torch.nan) if weight_bound is None else weight_bound.double(),
        "max_weight": torch.where(valid, stats.max_weight.double(), 0),
        "sink_mass": torch.where(valid, stats.sink_mass.double(), 0),
    }
    if weight_bound is not None:
        columns["weight_bound"] = torch.where(valid, columns["weight_bound"], 0)
    sums = torch.stack([columns[name].double().sum((0, 2)) for name in SUMS], dim=1)
    n_heads = entropy.shape[1]
    at = (columns["entropy"] * (N_BINS / MAX_NATS)).long().clamp(0, N_BINS - 1)
    histogram = torch.zeros(n_heads, N_BINS, dtype=torch.float64, device=entropy.device)
    histogram.scatter_add_(1, at.transpose(0, 1).flatten(1), valid.double().transpose(0, 1).flatten(1))
    return torch.cat([sums, histogram], dim=1)


def all_reduce(sums: Tensor, device: torch.device, group: Any = None) -> Tensor:
    """Add up over ranks; every rank must call it. NCCL wants the tensor on the accelerator."""
    import torch.distributed as dist

    moved = sums.to(device if dist.get_backend(group) == "nccl" else "cpu")
    dist.all_reduce(moved, group=group)
    return moved.cpu()


def means_of(sums: Tensor) -> dict[str, np.ndarray]:
    """Sums [..., WIDTH] → columns [...]: means and quantiles; NaN where nothing was measured."""
    values = sums.cpu().numpy()
    plain = dict(zip(SUMS, np.moveaxis(values[..., : len(SUMS)], -1, 0), strict=True))
    n = np.where(plain["n_queries"] > 0, plain["n_queries"], np.nan)
    n_ranked = np.where(plain["n_normalized"] > 0, plain["n_normalized"], np.nan)
    found = {name: plain[name] / n for name in SUMS[3:]}
    found["normalized"] = plain["normalized"] / n_ranked
    total = plain["n_queries"] + plain["n_nonfinite"]
    found["nonfinite"] = np.where(total > 0, plain["n_nonfinite"] / np.maximum(total, 1), 0.0)
    found["n_queries"] = plain["n_queries"]
    for level, value in zip(QUANTILES, _quantiles(values[..., len(SUMS) :]), strict=True):
        found[f"q{int(100 * level):02d}"] = value
    return found


def _quantiles(histogram: np.ndarray) -> list[np.ndarray]:
    cumulative = histogram.cumsum(-1)
    total = cumulative[..., -1:]
    width = MAX_NATS / N_BINS
    found = []
    for level in QUANTILES:
        target = level * total
        at = (cumulative < target).sum(-1, keepdims=True).clip(max=N_BINS - 1)
        below = np.take_along_axis(cumulative, at, -1) - np.take_along_axis(histogram, at, -1)
        inside = np.take_along_axis(histogram, at, -1)
        part = np.divide(target - below, inside, out=np.zeros_like(target), where=inside > 0)
        value = (at + part) * width
        found.append(np.where(total > 0, value, np.nan)[..., 0])
    return found
