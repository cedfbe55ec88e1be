"""Attention rollout: how much of each patch reaches the output through attention (Abnar & Zuidema 2020, 2005.00928)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.interp.names import POOL
from attlas.interp.require import patch_grid


def rollout_step(pattern: Tensor, so_far: Tensor | None, residual: float = 0.5) -> Tensor:
    """One layer of R ← ((1 − residual)·mean_heads(A) + residual·I)·R.

    Args:
        pattern: attention [B, head, dest, src].
        so_far: [B, dest, src] of the layers before, or None at the first.
        residual: share of the skip connection; 0.5 as in the paper, which makes rows sum to 1.

    Returns: [B, dest, src], rows sum to 1.
    """
    mixed = (1 - residual) * pattern.float().mean(1)
    mixed.diagonal(dim1=-2, dim2=-1).add_(residual)
    return mixed if so_far is None else mixed @ so_far


@torch.no_grad()
def rollout(model: HookedModel, pixels: Tensor, *, residual: float = 0.5) -> Tensor:
    """Rollout of a batch: [B, n_patches], from CLS (the mean over patches, without CLS). Patterns are kept a batch at a
    time."""
    return token_relevance(model, pixels, residual=residual)["rollout"]


@torch.no_grad()
def token_relevance(model: HookedModel, pixels: Tensor, *, residual: float = 0.5) -> dict[str, Tensor]:
    """Three readings of attention that rank an image's patches, each [B, n_patches].

    rollout: see rollout_step; last_layer: the last layer's attention from CLS, mean over heads; column_mass: attention
    received from all tokens, mean over queries, heads and layers. Without CLS a pooling head's query stands for it (its
    attention is then last_layer), or the mean over patches.
    """
    prefix = model.cfg.n_prefix_tokens
    pooled = [POOL] if model.structure.pool is not None else []
    cache = model.capture(pixels, ["blocks.*.attn.hook_pattern", *pooled])
    pool = cache[POOL][:, :, 0].float() if pooled else None
    so_far: Tensor | None = None
    received: Tensor | float = 0.0
    pattern = torch.empty(0)
    for layer in range(model.cfg.n_layers):
        pattern = cache.pop(f"blocks.{layer}.attn.hook_pattern").float()
        so_far = rollout_step(pattern, so_far, residual)
        received = received + pattern.mean((1, 2)) / model.cfg.n_layers
    assert so_far is not None  # a model has layers
    assert isinstance(received, Tensor)
    return {
        "rollout": of_patches(so_far, prefix, pool).cpu(),
        "last_layer": of_patches(pattern.mean(1), prefix).cpu() if pool is None else pool.mean(1).cpu(),
        "column_mass": received[:, prefix:].cpu(),
    }


def of_patches(maps: Tensor, prefix: int, pool: Tensor | None = None) -> Tensor:
    """What an image's embedding draws from each patch, of maps [B, T, T] → [B, n_patches].

    That is CLS's row; without CLS what a pooling head draws, by its pattern [B, head, T], or the mean over patches.
    """
    if pool is not None and not prefix:
        return (pool.mean(1)[:, None] @ maps)[:, 0]
    return (maps[..., 0, :] if prefix else maps.mean(-2))[..., prefix:]


def map_batches(model: HookedModel, images: ImageDataset, batch_size: int, most_bytes: int) -> Sequence[Tensor]:
    """The images in batches of at most batch_size, whose attention maps of all layers in float32 stay within most_bytes."""
    rows, columns = patch_grid(model, images.pixels)
    n_tokens = rows * columns + model.cfg.n_prefix_tokens
    fitting = most_bytes // (4 * model.cfg.n_layers * model.cfg.n_heads * n_tokens**2)
    return images.batches(max(1, min(batch_size, fitting)))


def relevance_of(
    model: HookedModel, images: ImageDataset, *, residual: float = 0.5, batch_size: int = 32, track: Track = no_track
) -> dict[str, Tensor]:
    """token_relevance of a whole image set, each [n_images, n_patches]; maps of a batch are held at a time."""
    batches = map_batches(model, images, batch_size, 2**28)
    parts = [token_relevance(model, pixels, residual=residual) for pixels in track(batches, "attention rollout")]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
