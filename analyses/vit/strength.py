"""How far ViT heads attend: attention by spatial neighbourhood (Li et al. 2023, arXiv 2303.13731)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.stats import bootstrap_mean
from attlas.interp import HookedModel
from attlas.interp.require import patch_grid

MEASURES = (
    "cls_to_patch",
    "patch_to_cls",
    "patch_to_prefix",
    "cls_to_registers",
    "patch_to_registers",
    "registers_to_patch",
    "self",
    "mean_distance_px",
    "entropy",
)


@dataclass(frozen=True)
class HeadStrength:
    """How much attention goes where, for every head.

    Attributes:
        per_image: measure → float32 [n_images, layer, head], means over an image's queries. Masses (shares of a
            query's attention) are named source_to_destination: cls is the first prefix token, registers the other
            ones (DeiT: the distillation token), prefix both; "self" is a patch's mass on itself; mean_distance_px is
            the distance from a patch to where it looks, with weights renormalised over patches; entropy is in nats,
            of patch queries over all tokens.
        ring_mass: [layer, head, hop] share of a patch's attention that falls on patches `hop` away (Chebyshev); mean over
            all queries, each counted equally, 0 where the image holds none of the ring.
        ring_mean: [layer, head, hop] attention per patch of that ring, each pair (query, patch) counted equally, so that
            queries with more of the ring inside the image weigh more.
        ring_mean_by_query: the same, each query counted equally: mean over its ring, then over queries that have one.
        maps: [layer, head, 2·rows − 1, 2·columns − 1] mean attention recentred on the query patch.
        map_variation: [layer, head] share of the recentred map's variance that changes from image to image: near 0 the
            head is content-agnostic, near 1 content-relevant.
    """

    per_image: dict[str, np.ndarray]
    ring_mass: np.ndarray
    ring_mean: np.ndarray
    ring_mean_by_query: np.ndarray
    maps: np.ndarray
    map_variation: np.ndarray

    def mean(self, measure: str) -> np.ndarray:
        """Mean of a measure over images, float64 [layer, head]."""
        values: np.ndarray = self.per_image[measure].mean(0, dtype=np.float64)
        return values

    @property
    def distance(self) -> np.ndarray:
        """Mean distance in pixels from a patch to where it looks, [layer, head]."""
        return self.mean("mean_distance_px")


@dataclass(frozen=True)
class Trend:
    """How a measure changes with depth: least-squares slope a layer of its mean over heads, with its interval."""

    measure: str
    slope: float
    low: float
    high: float
    first_layer: float
    last_layer: float


def trend(strength: HeadStrength, *, seed: int = 0, n_samples: int = 1000) -> list[Trend]:
    """Trend of every measure over layers; 95 % bootstrap intervals over images."""
    found = []
    for measure, values in strength.per_image.items():
        by_layer = values.mean(-1, dtype=np.float64)  # [image, layer]
        depth = np.arange(by_layer.shape[1]) - (by_layer.shape[1] - 1) / 2
        slopes = by_layer @ depth / max((depth**2).sum(), 1e-12)
        mean, low, high = (float(x[0]) for x in bootstrap_mean(slopes[:, None], seed=seed, n_samples=n_samples))
        found.append(Trend(measure, mean, low, high, float(by_layer[:, 0].mean()), float(by_layer[:, -1].mean())))
    return found


def hop_matrix(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """(Chebyshev hops int64, Euclidean distance in patches) between patches, each [n, n], row-major."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = (y[:, None] - y[None]), (x[:, None] - x[None])
    return torch.maximum(dy.abs(), dx.abs()), (dy.double() ** 2 + dx.double() ** 2).sqrt()


def _recentred(patch: Tensor, rows: int, columns: int) -> Tensor:
    """Sums of attention maps [..., n, n] over all pairs of patches with the same offset (source − query).

    Returns: float64 [..., (2·rows − 1)·(2·columns − 1)], offsets row-major.
    """
    grid = patch.unflatten(-1, (rows, columns)).unflatten(-3, (rows, columns))  # [..., row, column, row', column']
    across = _sum_by_offset(grid.transpose(-3, -2))  # [..., row, row', column offset]
    return _sum_by_offset(across.movedim(-1, -3)).transpose(-1, -2).flatten(-2)


def _sum_by_offset(x: Tensor) -> Tensor:
    """[..., n, n] → float64 [..., 2n − 1], entry d + n − 1 the sum over i of x[i, i + d]: rows sheared, then summed."""
    n = x.shape[-1]
    wide = torch.nn.functional.pad(x.flip(-2), (0, n)).flatten(-2)[..., :-n]
    return wide.unflatten(-1, (n, 2 * n - 1)).sum(-2, dtype=torch.float64)


@torch.no_grad()
def head_strength(
    model: HookedModel, images: ImageDataset, *, batch_size: int = 32, track: Track = no_track
) -> HeadStrength:
    """Measure every head. Maps of one batch are in memory at a time, at most about 256 MB of them.

    The images may be larger or smaller than the model's own size, where the model takes them (DINOv2 does).
    """
    cfg = model.cfg
    rows, columns = patch_grid(model, images.pixels)
    n_patches, prefix = rows * columns, cfg.n_prefix_tokens
    per_image = 4 * cfg.n_layers * cfg.n_heads * (n_patches + prefix) ** 2
    batch_size = max(1, min(batch_size, 2**28 // per_image))
    hops, distances = hop_matrix(rows, columns)
    distances = distances.float() * cfg.patch_size
    by_query = _query_weights(hops)
    offsets = [torch.arange(-n + 1, n).abs() for n in (rows, columns)]
    count = ((rows - offsets[0])[:, None] * (columns - offsets[1])[None]).flatten()  # pairs of patches of each offset
    shape = (cfg.n_layers, cfg.n_heads)
    measured = {m: np.zeros((len(images), *shape), dtype=np.float32) for m in MEASURES}
    maps = torch.zeros(*shape, len(count), dtype=torch.float64)
    squares = torch.zeros(*shape, dtype=torch.float64)
    ring_by_query = torch.zeros(*shape, max(rows, columns), dtype=torch.float64)
    done = 0
    for pixels in track(images.batches(batch_size), "attention by distance"):
        cache = model.capture(pixels, "blocks.*.attn.hook_pattern")
        for layer in range(cfg.n_layers):
            pattern = cache.pop(f"blocks.{layer}.attn.hook_pattern").float().cpu()
            for name, value in _measure(pattern, prefix, distances).items():
                measured[name][done : done + len(pixels), layer] = value.numpy()
            centred = _recentred(pattern[:, :, prefix:, prefix:], rows, columns)
            maps[layer] += centred.sum(0)
            squares[layer] += (centred / count).pow(2).sum(0).sum(-1)
            weighted = pattern[:, :, prefix:, prefix:].sum(0, dtype=torch.float64) * by_query
            ring_by_query[layer].index_add_(-1, hops.flatten(), weighted.flatten(-2))
        done += len(pixels)
    n = len(images)
    ring_mass, ring_mean = _rings(maps / n, count, rows, columns)
    average = maps / n / count
    within = squares / n - average.pow(2).sum(-1)  # variance over images, summed over offsets
    between = average.var(-1, correction=0) * len(count)  # variance over offsets of the average map
    return HeadStrength(
        per_image=measured,
        ring_mass=ring_mass,
        ring_mean=ring_mean,
        ring_mean_by_query=(ring_by_query / n).numpy(),
        maps=average.reshape(*shape, 2 * rows - 1, 2 * columns - 1).numpy(),
        map_variation=(within / (within + between).clamp_min(1e-30)).clamp(0, 1).numpy(),
    )


def _measure(pattern: Tensor, prefix: int, distances: Tensor) -> dict[str, Tensor]:
    """Measure → [image, head], from patterns [image, head, query, source] and distances [n, n] in pixels."""
    patch = pattern[:, :, prefix:, prefix:]
    reach = torch.einsum("bhqs,qs->bhq", patch, distances) / patch.sum(-1).clamp_min(1e-12)
    found = {
        "self": patch.diagonal(dim1=-2, dim2=-1).mean(-1),
        "mean_distance_px": reach.mean(-1),
        "entropy": torch.special.entr(pattern[:, :, prefix:]).sum(-1).mean(-1),
    }
    if prefix:
        found["cls_to_patch"] = pattern[:, :, 0, prefix:].sum(-1)
        found["patch_to_cls"] = pattern[:, :, prefix:, 0].mean(-1)
        found["patch_to_prefix"] = pattern[:, :, prefix:, :prefix].sum(-1).mean(-1)
    if prefix > 1:
        found["cls_to_registers"] = pattern[:, :, 0, 1:prefix].sum(-1)
        found["patch_to_registers"] = pattern[:, :, prefix:, 1:prefix].sum(-1).mean(-1)
        found["registers_to_patch"] = pattern[:, :, 1:prefix, prefix:].sum(-1).mean(-1)
    return found


def _query_weights(hops: Tensor) -> Tensor:
    """Weight of each pair [query, source], float64, so that a sum over a ring's pairs counts every query that has some of
    the ring equally: 1 / (patches of the ring that the query has · queries that have any)."""
    weights = torch.zeros(hops.shape, dtype=torch.float64)
    for hop in range(int(hops.max()) + 1):
        ring = hops == hop
        patches = ring.sum(-1, keepdim=True)
        weights += ring / (patches.clamp_min(1) * (patches > 0).sum())
    return weights


def _rings(offset_sums: Tensor, count: Tensor, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(mass, mean per patch) of each ring, from sums by offset [layer, head, n_offsets]: a ring is a set of offsets."""
    dy = torch.arange(-rows + 1, rows).abs()[:, None].expand(-1, 2 * columns - 1)
    dx = torch.arange(-columns + 1, columns).abs()[None].expand(2 * rows - 1, -1)
    hop = torch.maximum(dy, dx).flatten()
    in_ring = torch.nn.functional.one_hot(hop).double()
    mass = offset_sums @ in_ring
    pairs = count.double() @ in_ring
    return (mass / (rows * columns)).numpy(), (mass / pairs).numpy()
