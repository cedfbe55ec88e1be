"""What a drop does to sparse features: their activity and their effect on the loss, sequence by sequence, before and after.

For a feature f with activation a and decoder row d at token t, x the activation the autoencoder reads and ℓ the mean loss
of the sequence: effect = −Σ_t a_t (d · ∂ℓ/∂x_t), to first order what the loss would rise by if the feature were taken out
everywhere (Nanda 2023's attribution patching; Marks et al. 2024, arXiv 2403.19647); size = Σ_t |a_t (d · ∂ℓ/∂x_t)|.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.common.losses import sequence_loss
from attlas.analyses.features.stream import TopEntries
from attlas.data.dataset import Batch
from attlas.data.stats import MIN_UNITS, student_t
from attlas.interp import HookedModel
from attlas.interp.drop import Drop, masked
from attlas.interp.names import layer_of
from attlas.saes.base import SAE
from attlas.saes.positions import Positions

BEFORE, AFTER = 0, 1
COUNT, ACTIVITY, EFFECT, SIZE = range(4)


def absent(hook: str, drop: Drop) -> bool:
    """Whether a hook's place is gone from the pruned model: its module, or the block around it."""
    layer = layer_of(hook)
    in_attention = ".attn." in hook or hook.endswith(("ln1.hook_normalized", "hook_attn_out"))
    if layer in drop.blocks:
        return not hook.endswith(("hook_resid_pre", "hook_resid_mid", "hook_resid_post"))
    if in_attention:
        return layer in drop.attn
    return layer in drop.mlp and hook.endswith(("hook_mlp_out", "ln2.hook_normalized"))


@dataclass(frozen=True)
class Reading:
    """One autoencoder on one sequence.

    Attributes:
        sums: float64 [quantity, F]: tokens active, mean activation, effect, size.
        peak: each feature's largest activation, [F], and its position, int64 [F].
    """

    sums: np.ndarray
    peak: Tensor
    position: Tensor
    n_tokens: int


@dataclass
class FeatureTally:
    """Sums over sequences of one autoencoder's features.

    Attributes:
        d_sae: number of features F.
        n_best: sequences kept of each feature, the strongest before the drop.
        sums: float64 [before or after, quantity, F]: tokens active, mean activation of a sequence, its effect, its size.
        change, change_squares: float64 [F]: Σ and Σ of squares of a sequence's mean activation after less before.
        n_tokens, n_sequences: measured, on either side.
    """

    d_sae: int
    n_best: int = 3
    n_tokens: int = 0
    n_sequences: int = 0
    sums: np.ndarray = field(init=False)
    change: np.ndarray = field(init=False)
    change_squares: np.ndarray = field(init=False)
    best: TopEntries = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((2, 4, self.d_sae))
        self.change, self.change_squares = np.zeros(self.d_sae), np.zeros(self.d_sae)
        self.best = TopEntries.empty(self.n_best, self.d_sae)

    def add(self, before: Reading, after: Reading | None) -> None:
        """One sequence, in the whole model and in the other; None where the place is gone."""
        second = after.sums if after is not None else np.zeros_like(before.sums)
        self.sums[BEFORE] += before.sums
        self.sums[AFTER] += second
        difference = second[ACTIVITY] - before.sums[ACTIVITY]
        self.change += difference
        self.change_squares += difference**2
        key = torch.where(before.peak > 0, before.peak, -torch.inf)[None]
        sequence = torch.full((1, self.d_sae), self.n_sequences)
        self.best.merge(key, before.peak[None], sequence, before.position[None])
        self.n_tokens += before.n_tokens
        self.n_sequences += 1

    def density(self, side: int) -> np.ndarray:
        """Share of tokens on which each feature is active."""
        found: np.ndarray = self.sums[side, COUNT] / max(1, self.n_tokens)
        return found

    def mean(self, side: int, quantity: int) -> np.ndarray:
        """Mean over sequences of activation, effect or size."""
        found: np.ndarray = self.sums[side, quantity] / max(1, self.n_sequences)
        return found

    def change_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval of the change of the mean activation, paired by sequence: Student's t, NaN below MIN_UNITS."""
        n = self.n_sequences
        mean = self.change / n
        if n < MIN_UNITS:
            return np.full_like(mean, math.nan), np.full_like(mean, math.nan)
        error = student_t(n - 1) * np.sqrt(np.maximum(0, self.change_squares / n - mean**2) / (n - 1))
        return mean - error, mean + error

    def states(self, least_active: int, dead_below: float) -> list[str]:
        """dead, weaker, same, stronger or rare of each feature.

        dead: the density falls below `dead_below` of what it was; weaker, stronger: the interval of the change of the
        mean activation excludes 0; rare: active on fewer than `least_active` tokens before.
        """
        low, high = self.change_interval()
        before, after = self.sums[BEFORE, COUNT], self.sums[AFTER, COUNT]
        dead = after < dead_below * before
        conditions = [before < least_active, dead, high < 0, low > 0]
        return [str(s) for s in np.select(conditions, ["rare", "dead", "weaker", "stronger"], "same")]

    def worst(self, least_active: int, n: int) -> list[int]:
        """The features that keep the least of their mean activation; of those that keep nothing, the most active first."""
        before, after = self.sums[BEFORE, ACTIVITY], self.sums[AFTER, ACTIVITY]
        known = np.flatnonzero(self.sums[BEFORE, COUNT] >= least_active)
        kept = after[known] / before[known]
        return [int(f) for f in known[np.lexsort((-before[known], kept))][:n]]


@contextlib.contextmanager
def _probed(model: HookedModel, hooks: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """hook → (activation, a zero that is added to it and takes its gradient), filled by a forward pass."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def probe(x: Tensor, name: str) -> Tensor:
        found[name] = (x.detach(), torch.zeros_like(x, requires_grad=True))
        return x + found[name][1]

    with model.hooks(dict.fromkeys(hooks, probe)):
        yield found


def activations(
    model: HookedModel, batch: Tensor, target: Tensor | None, hooks: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """hook → (x, ∂ℓ/∂x), each sequence's loss by its own activations; no gradients without a target."""
    if target is None:
        return {name: (x, None) for name, x in model.capture(batch, list(hooks)).items()}
    with torch.enable_grad(), _probed(model, hooks) as found:
        loss = sequence_loss(model, target, model(batch)).sum()
    names = [name for name in hooks if name in found]
    gradients = torch.autograd.grad(loss, [found[name][1] for name in names])
    return {name: (found[name][0], g) for name, g in zip(names, gradients, strict=True)}


@torch.no_grad()
def read(sae: SAE, x: Tensor, gradient: Tensor | None, keep: Tensor | None = None) -> Reading:
    """Every feature on one sequence [T, …], on the positions of `keep` bool [T]; effect and size are NaN without a
    gradient."""
    flat = sae.flatten_heads(x)
    values, indices = sae.encode_sparse(flat)
    n = len(flat)
    if keep is not None:
        values, n = values.masked_fill(~keep.to(values.device)[:, None], 0), int(keep.sum())
    active = values > 0
    where = indices[active].cpu()
    sums = np.zeros((4, sae.cfg.d_sae))

    def add_up(per_feature: Tensor) -> np.ndarray:
        return np.bincount(where.numpy(), per_feature[active].double().cpu().numpy(), minlength=sae.cfg.d_sae)

    sums[COUNT] = np.bincount(where.numpy(), minlength=sae.cfg.d_sae)
    sums[ACTIVITY] = add_up(values) / max(n, 1)
    if gradient is None:
        sums[EFFECT:] = math.nan
    else:
        product = _contributions(sae, flat, values, indices, sae.flatten_heads(gradient))
        sums[EFFECT], sums[SIZE] = -add_up(product), add_up(product.abs())
    amount, token = values[active].float().cpu(), active.nonzero()[:, 0].cpu()
    peak = torch.zeros(sae.cfg.d_sae).scatter_reduce_(0, where, amount, "amax")
    strongest = amount == peak[where]
    position = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    position[where[strongest]] = token[strongest]
    return Reading(sums, peak, position, n)


def _contributions(sae: SAE, x: Tensor, values: Tensor, indices: Tensor, gradient: Tensor) -> Tensor:
    """a · (d · ∂ℓ/∂x) [T, k]; a in units of x, so times the token's scale where an autoencoder normalises tokens."""
    restore = sae._normalise(x.to(sae.W_enc.dtype))[1]
    zero = torch.zeros_like(x, dtype=sae.W_enc.dtype)
    scale = (restore(zero + 1) - restore(zero))[..., :1]
    slope = torch.einsum("tkd,td->tk", sae.W_dec[indices], gradient.to(sae.W_dec.dtype))
    return values * scale * slope


def tally(
    model: HookedModel,
    saes: dict[str, SAE],
    batch: Batch,
    target: Tensor | None,
    drop: Drop,
    tallies: dict[str, FeatureTally],
    rules: Mapping[str, Positions],
) -> None:
    """Add one batch to the tallies: the whole model, and the model with parts dropped. Absent places do nothing after."""
    before = activations(model, batch.inputs, target, list(saes))
    present = [hook for hook in saes if not absent(hook, drop)]
    after: dict[str, tuple[Tensor, Tensor | None]] = {}
    if present:
        with masked(model, drop):
            after = activations(model, batch.inputs, target, present)
    masks = {hook: rules[hook].mask(batch.inputs, before[hook][0].shape[1], batch.mask) for hook in saes}
    for hook, sae in saes.items():
        for row in range(len(batch)):
            keep = masks[hook][row]
            first, second = (_read_row(sae, found.get(hook), row, keep) for found in (before, after))
            assert first is not None
            tallies[hook].add(first, second)


def _read_row(sae: SAE, found: tuple[Tensor, Tensor | None] | None, row: int, keep: Tensor) -> Reading | None:
    if found is None:
        return None
    x, gradient = found
    return read(sae, x[row], None if gradient is None else gradient[row], keep)
