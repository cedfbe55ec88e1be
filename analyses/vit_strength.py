"""How far ViT heads look: attention by spatial neighbourhood (Li et al. 2023, arXiv 2303.13731)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.data.images import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel


@dataclass(frozen=True)
class HeadStrength:
    """Means over images and queries; all arrays are float64.

    Attributes:
        ring_mass: [layer, head, hop] share of a patch's attention that falls on patches `hop` away (Chebyshev).
        ring_mean: [layer, head, hop] attention per patch of that ring; rings that a query lacks are left out.
        cls_to_patch: [layer, head] mass from the first prefix token to all patches.
        patch_to_cls: [layer, head] mass from a patch to the first prefix token.
        patch_to_prefix: [layer, head] mass from a patch to all prefix tokens (CLS and registers).
        self_mass: [layer, head] mass of a patch on itself.
        distance: [layer, head] mean distance in pixels from a patch to where it looks, weights renormalised over patches.
        entropy: [layer, head] entropy of patch queries over all tokens, nats.
        maps: [layer, head, 2·rows − 1, 2·columns − 1] mean attention recentred on the query patch.
        map_variation: [layer, head] share of the recentred map's variance that changes from image to image: near 0 the
            head is content-agnostic, near 1 content-relevant.
    """

    ring_mass: np.ndarray
    ring_mean: np.ndarray
    cls_to_patch: np.ndarray
    patch_to_cls: np.ndarray
    patch_to_prefix: np.ndarray
    self_mass: np.ndarray
    distance: np.ndarray
    entropy: np.ndarray
    maps: np.ndarray
    map_variation: np.ndarray


def hop_matrix(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """(Chebyshev hops int64, Euclidean distance in patches) between patches, each [n, n], row-major."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = (y[:, None] - y[None]), (x[:, None] - x[None])
    return torch.maximum(dy.abs(), dx.abs()), (dy.double() ** 2 + dx.double() ** 2).sqrt()


def _offsets(rows: int, columns: int) -> Tensor:
    """Index of (source − query) in the flattened recentred map, [n, n]."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[None] - y[:, None] + rows - 1, x[None] - x[:, None] + columns - 1
    return dy * (2 * columns - 1) + dx


class _Recentre:
    """Sums of an attention map [n, n] over all pairs of patches with the same offset (source − query)."""

    def __init__(self, rows: int, columns: int) -> None:
        offsets = _offsets(rows, columns).flatten()
        self.n_offsets = (2 * rows - 1) * (2 * columns - 1)
        self.order = offsets.argsort(stable=True)
        self.count = torch.bincount(offsets, minlength=self.n_offsets)
        self.ends = self.count.cumsum(0) - 1

    def __call__(self, patch: Tensor) -> Tensor:
        """[..., n, n] → float64 [..., n_offsets]: sorted by offset, so that each sum is a difference of running sums."""
        running = patch.flatten(-2)[..., self.order].double().cumsum(-1)[..., self.ends]
        return torch.diff(running, dim=-1, prepend=torch.zeros_like(running[..., :1]))


@torch.no_grad()
def head_strength(
    model: HookedModel, images: ImageDataset, *, batch_size: int = 32, track: Track = no_track
) -> HeadStrength:
    """Measure every head. Maps of one batch are in memory at a time, at most about 256 MB of them."""
    cfg = model.cfg
    rows, columns = cfg.grid
    n_patches, prefix = rows * columns, cfg.n_prefix_tokens
    per_image = 4 * cfg.n_layers * cfg.n_heads * (n_patches + prefix) ** 2
    batch_size = max(1, min(batch_size, 2**28 // per_image))
    _, distances = hop_matrix(rows, columns)
    recentre = _Recentre(rows, columns)
    shape = (cfg.n_layers, cfg.n_heads)
    sums = {k: torch.zeros(*shape, dtype=torch.float64) for k in ("c2p", "p2c", "p2x", "self", "dist", "ent", "var")}
    maps = torch.zeros(*shape, recentre.n_offsets, dtype=torch.float64)
    for pixels in track(images.batches(batch_size), "attention by distance"):
        cache = model.capture(pixels, "blocks.*.attn.hook_pattern")
        for layer in range(cfg.n_layers):
            pattern = cache.pop(f"blocks.{layer}.attn.hook_pattern").float().cpu()
            patch = pattern[:, :, prefix:, prefix:]
            if prefix:
                sums["c2p"][layer] += pattern[:, :, 0, prefix:].sum(-1).sum(0)
                sums["p2c"][layer] += pattern[:, :, prefix:, 0].mean(-1).sum(0)
                sums["p2x"][layer] += pattern[:, :, prefix:, :prefix].sum(-1).mean(-1).sum(0)
            sums["self"][layer] += patch.diagonal(dim1=-2, dim2=-1).mean(-1).sum(0)
            reach = torch.einsum("bhqs,qs->bhq", patch, distances.float()) / patch.sum(-1).clamp_min(1e-12)
            sums["dist"][layer] += reach.mean(-1).sum(0)
            sums["ent"][layer] += torch.special.entr(pattern[:, :, prefix:]).sum(-1).mean(-1).sum(0)
            centred = recentre(patch)
            maps[layer] += centred.sum(0)
            sums["var"][layer] += (centred / recentre.count).pow(2).sum(0).sum(-1)
    n = len(images)
    ring_mass, ring_mean = _rings(maps / n, recentre.count, rows, columns)
    average = maps / n / recentre.count
    within = sums["var"] / n - average.pow(2).sum(-1)  # variance over images, summed over offsets
    between = average.var(-1, correction=0) * recentre.n_offsets  # variance over offsets of the average map
    return HeadStrength(
        ring_mass=ring_mass,
        ring_mean=ring_mean,
        cls_to_patch=(sums["c2p"] / n).numpy(),
        patch_to_cls=(sums["p2c"] / n).numpy(),
        patch_to_prefix=(sums["p2x"] / n).numpy(),
        self_mass=(sums["self"] / n).numpy(),
        distance=(sums["dist"] / n * cfg.patch_size).numpy(),
        entropy=(sums["ent"] / n).numpy(),
        maps=average.reshape(*shape, 2 * rows - 1, 2 * columns - 1).numpy(),
        map_variation=(within / (within + between).clamp_min(1e-30)).clamp(0, 1).numpy(),
    )


def _rings(offset_sums: Tensor, count: Tensor, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(mass, mean per patch) of each ring, from sums by offset [layer, head, n_offsets]: a ring is a set of offsets."""
    dy = torch.arange(-rows + 1, rows).abs()[:, None].expand(-1, 2 * columns - 1)
    dx = torch.arange(-columns + 1, columns).abs()[None].expand(2 * rows - 1, -1)
    hop = torch.maximum(dy, dx).flatten()
    in_ring = torch.nn.functional.one_hot(hop).double()
    mass = offset_sums @ in_ring
    pairs = count.double() @ in_ring
    return (mass / (rows * columns)).numpy(), (mass / pairs).numpy()
