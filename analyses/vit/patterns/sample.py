"""A sample of single-query attention maps of a ViT, streamed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.interp.require import patch_grid


@dataclass(frozen=True)
class PatternSample:
    """Attention maps of single queries.

    Attributes:
        maps: float32 [n, rows, columns] attention over patches, not renormalised (the rest is on prefix tokens).
        layer, head, image, query: int [n]; query is the patch index, row-major.
        grid: (rows, columns).
    """

    maps: np.ndarray
    layer: np.ndarray
    head: np.ndarray
    image: np.ndarray
    query: np.ndarray
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.maps)

    def recentred(self) -> np.ndarray:
        """[n, 2·rows − 1, 2·columns − 1]: each map moved so that its query is in the middle; zero off the image."""
        rows, columns = self.grid
        out = np.zeros((len(self), 2 * rows - 1, 2 * columns - 1), dtype=np.float32)
        for index, (map_, query) in enumerate(zip(self.maps, self.query, strict=True)):
            y, x = divmod(int(query), columns)
            out[index, rows - 1 - y : 2 * rows - 1 - y, columns - 1 - x : 2 * columns - 1 - x] = map_
        return out

    def take(self, chosen: np.ndarray) -> PatternSample:
        """The chosen maps."""
        fields = {name: getattr(self, name)[chosen] for name in ("maps", "layer", "head", "image", "query")}
        return PatternSample(**fields, grid=self.grid)


def plan(n_maps: int, n_images: int, n_heads_in_all: int, n_patches: int, seed: int) -> np.ndarray:
    """Which maps to keep, int64 [≤ n_maps, 3] of (image, flat head, query), by image.

    Every head gets equally many, each from an image and a query of its own draw, without repeats.
    """
    rng = np.random.default_rng(seed)
    each = min(max(1, n_maps // n_heads_in_all), n_images * n_patches)
    cells = [rng.choice(n_images * n_patches, size=each, replace=False) for _ in range(n_heads_in_all)]
    rows = [np.stack([c // n_patches, np.full(each, head), c % n_patches], 1) for head, c in enumerate(cells)]
    wanted = np.concatenate(rows)
    return wanted[np.lexsort(wanted.T[::-1])]


def deal(sample: PatternSample, n_draws: int, seed: int) -> np.ndarray:
    """Deal each head's maps at random to draws of equal size, int64 [n] from 0; what is left over goes to the first draws."""
    rng = np.random.default_rng(seed)
    draw = np.empty(len(sample), dtype=np.int64)
    flat = sample.layer.astype(np.int64) * (int(sample.head.max()) + 1) + sample.head
    for head in np.unique(flat):
        mine = rng.permutation(np.flatnonzero(flat == head))
        draw[mine] = np.arange(len(mine)) % n_draws
    return draw


@torch.no_grad()
def sample_patterns(
    model: HookedModel,
    images: ImageDataset,
    *,
    n_maps: int = 6000,
    seed: int = 0,
    batch_size: int = 32,
    track: Track = no_track,
) -> PatternSample:
    """Draw maps, equally many of every head; only the maps of one batch of images are ever in memory in full."""
    cfg = model.cfg
    grid = patch_grid(model, images.pixels)
    n_patches = grid[0] * grid[1]
    wanted = plan(n_maps, len(images), cfg.n_layers * cfg.n_heads, n_patches, seed)
    n_tokens = n_patches + cfg.n_prefix_tokens
    batch_size = max(1, min(batch_size, 2**28 // (4 * cfg.n_layers * cfg.n_heads * n_tokens**2)))
    maps = np.zeros((len(wanted), n_patches), dtype=np.float32)
    starts = range(0, len(images), batch_size)
    for start in track(starts, "attention maps", len(starts)):
        first, last = np.searchsorted(wanted[:, 0], [start, start + batch_size])
        if first == last:
            continue
        cache = model.capture(images.pixels[start : start + batch_size], "blocks.*.attn.hook_pattern")
        for layer in range(cfg.n_layers):
            pattern = cache.pop(f"blocks.{layer}.attn.hook_pattern")[:, :, cfg.n_prefix_tokens :, cfg.n_prefix_tokens :]
            here = first + np.flatnonzero(wanted[first:last, 1] // cfg.n_heads == layer)
            image, head, query = (torch.from_numpy(column) for column in wanted[here].T)
            maps[here] = pattern[image - start, head % cfg.n_heads, query].float().cpu().numpy()
    return PatternSample(
        maps.reshape(-1, *grid),
        (wanted[:, 1] // cfg.n_heads).astype(np.int16),
        (wanted[:, 1] % cfg.n_heads).astype(np.int16),
        wanted[:, 0].astype(np.int32),
        wanted[:, 2].astype(np.int32),
        grid,
    )
