"""How much attention each token of an image receives (column mass; after Visual Dependency Transformers, 2304.03282)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.interp.require import patch_grid


@dataclass(frozen=True)
class ColumnMass:
    """Attention received, mean over queries (so that the masses of all tokens sum to 1).

    Attributes:
        average: float64 [layer, head, token], mean over images, prefix tokens first.
        by_image: float32 [n_images, layer, n_patches], mean over heads.
        leaf_share: float64 [layer, head] share of patches that receive less than half of the mean over patches.
        gini: float64 [layer, head] Gini coefficient of the patches' masses: 0 all equal, near 1 one patch has all.
        n_prefix: tokens before the patches.
        grid: (rows, columns).
    """

    average: np.ndarray
    by_image: np.ndarray
    leaf_share: np.ndarray
    gini: np.ndarray
    n_prefix: int
    grid: tuple[int, int]

    def least_first(self, layer: int) -> Tensor:
        """Patches of each image by mass received at a layer, least first, int64 [n_images, n_patches]."""
        return torch.from_numpy(self.by_image[:, layer]).argsort(stable=True, dim=-1)

    def leaf_frequency(self, layer: int, share: float) -> np.ndarray:
        """[rows, columns] share of images in which a patch is among the `share` that receive least."""
        n_images, n_patches = self.by_image.shape[0], self.by_image.shape[2]
        least = self.least_first(layer)[:, : max(1, round(share * n_patches))]
        counts = np.bincount(least.numpy().ravel(), minlength=n_patches)
        return (counts / n_images).reshape(self.grid)


def gini(mass: Tensor) -> Tensor:
    """Gini coefficient over the last axis of non-negative values."""
    n = mass.shape[-1]
    ordered = mass.sort(-1).values.double()
    rank = torch.arange(1, n + 1, dtype=torch.float64, device=mass.device)
    return (2 * (ordered * rank).sum(-1) / ordered.sum(-1).clamp_min(1e-30) - (n + 1)) / n


@torch.no_grad()
def column_mass(
    model: HookedModel, images: ImageDataset, *, batch_size: int = 32, track: Track = no_track
) -> ColumnMass:
    """Measure what every token receives; maps of a batch are in memory at a time, at most about 256 MB of them."""
    cfg = model.cfg
    grid = patch_grid(model, images.pixels)
    n_tokens = grid[0] * grid[1] + cfg.n_prefix_tokens
    batch_size = max(1, min(batch_size, 2**28 // (4 * cfg.n_layers * cfg.n_heads * n_tokens**2)))
    shape = (cfg.n_layers, cfg.n_heads)
    total = torch.zeros(*shape, n_tokens, dtype=torch.float64)
    leaf, inequality = torch.zeros(*shape, dtype=torch.float64), torch.zeros(*shape, dtype=torch.float64)
    by_image = np.zeros((len(images), cfg.n_layers, grid[0] * grid[1]), dtype=np.float32)
    done = 0
    for pixels in track(images.batches(batch_size), "attention received"):
        cache = model.capture(pixels, "blocks.*.attn.hook_pattern")
        for layer in range(cfg.n_layers):
            received = cache.pop(f"blocks.{layer}.attn.hook_pattern").float().mean(2).cpu()  # [image, head, token]
            patches = received[..., cfg.n_prefix_tokens :]
            total[layer] += received.double().sum(0)
            leaf[layer] += (patches < patches.mean(-1, keepdim=True) / 2).double().mean(-1).sum(0)
            inequality[layer] += gini(patches).sum(0)
            by_image[done : done + len(pixels), layer] = patches.mean(1).numpy()
        done += len(pixels)
    n = len(images)
    return ColumnMass(
        (total / n).numpy(), by_image, (leaf / n).numpy(), (inequality / n).numpy(), cfg.n_prefix_tokens, grid
    )
