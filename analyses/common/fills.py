"""What takes the place of an ablated head's z: zero, a mean, or what the head writes for another input.

Zero may lie far from anything the model ever sees. The mean over all positions fills every position with one vector, so
that CLS gets what is mostly patches' and what a head writes of *where* a token stands is lost too; the mean at each position
takes away what differs between inputs alone. "resample" puts in the same positions of another input (Chan et al. 2022,
causal scrubbing), which stays where the model's own activations lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attlas.data.dataset import Dataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel

FILLS = ("zero", "mean", "mean_per_position", "resample")
Fill = Tensor | float


@torch.no_grad()
def mean_z(model: HookedModel, data: Dataset, batch_size: int, *, per_position: bool = False) -> Tensor:
    """Mean of hook_z over sequences (images) and positions [layer, head, d_head], or at each position
    [layer, T, head, d_head]; summed in float64, padding left out."""
    total: Tensor | None = None
    for batch in data.minibatches(batch_size):
        cache = model.capture(batch.inputs, "blocks.*.attn.hook_z")
        layers = [cache[f"blocks.{layer}.attn.hook_z"].double().cpu() for layer in range(model.cfg.n_layers)]
        if batch.mask is not None:
            layers = [z * batch.mask[..., None, None] for z in layers]
        sums = torch.stack([z.sum(0) for z in layers])
        total = sums if total is None else total + sums
    assert total is not None  # data sets are not empty
    n_T = torch.full(total.shape[1:2], len(data)) if data.mask is None else data.mask.sum(0)
    mean = total / n_T.clamp_min(1)[:, None, None] if per_position else total.sum(1) / n_T.sum()
    return mean.to(model.device, model.dtype)


def donors(n: int, n_draws: int, seed: int) -> Tensor:
    """Which other input gives its z to each of n, int64 [n_draws, n]: drawn evenly among the others, by the seed.

    Raises:
        ConfigError: there is no other.
    """
    if n < 2:
        raise ConfigError(f"ablation 'resample' takes z from another input, and there is {n}; give at least 2")
    steps = np.random.default_rng(seed).integers(1, n, size=(n_draws, n))
    return torch.from_numpy((np.arange(n) + steps) % n)


class HeadFills:
    """Fills for all heads over one data set; means are taken once, other inputs' z batch by batch.

    Args:
        ablations: of FILLS.
        batch_size: inputs at a time, for the means.
        n_draws: other inputs for each, for "resample".
        seed: of these draws.

    Raises:
        ConfigError: "resample" with one input, or with padded text (another row may be shorter).
    """

    def __init__(
        self,
        model: HookedModel,
        data: Dataset,
        ablations: Sequence[str],
        *,
        batch_size: int,
        n_draws: int,
        seed: int,
    ) -> None:
        self.model = model
        if "resample" in ablations and data.mask is not None:
            raise ConfigError(
                f"ablation 'resample' needs rows of one length, and '{data.name}' is padded; choose another"
            )
        self._inputs = data.tensor
        self._means: dict[str, Tensor] = {}
        for name in {"mean", "mean_per_position"} & set(ablations):
            self._means[name] = mean_z(model, data, batch_size, per_position=name == "mean_per_position")
        self._donors = donors(len(data), n_draws, seed) if "resample" in ablations else None
        self._donated: list[list[Tensor]] = []

    def n_draws(self, ablation: str) -> int:
        """Fills of one input under this ablation; the effect is their mean."""
        return len(self._donors) if ablation == "resample" and self._donors is not None else 1

    @torch.no_grad()
    def turn_to(self, rows: Tensor) -> None:
        """From here on `of` answers for these inputs, int64 [B]."""
        if self._donors is None:
            return
        self._donated = []
        for draw in self._donors:
            cache = self.model.capture(self._inputs[draw[rows.cpu()]], "blocks.*.attn.hook_z")
            self._donated.append([cache[f"blocks.{layer}.attn.hook_z"] for layer in range(self.model.cfg.n_layers)])

    def of(self, ablation: str, layer: int, draw: int = 0) -> Fill:
        """Fill of a layer's heads: 0, or [..., head, d_head], with [T] or [B, T] in front where it depends on them."""
        if ablation == "zero":
            return 0.0
        return self._donated[draw][layer] if ablation == "resample" else self._means[ablation][layer]


def fill_head(z: Tensor, head: int, fill: Fill) -> None:
    """Put a fill in one head of z [B, T, head, d_head], in place; z may hold the first positions alone."""
    if isinstance(fill, Tensor):
        fill = fill[..., head, :]
        fill = fill[..., : z.shape[1], :] if fill.ndim > 1 else fill
    z[:, :, head] = fill
