"""What a feature's activation owes to the tokens it is said to read: change them, run the model again, read it again *(ours)*.

Changes of one sequence before an example's position t; the token at t and all after it stay:

- copies: every earlier occurrence of the token at t gives way to a token of like frequency, so that nothing is next by
  induction (its successors stay);
- control: as many other positions do, drawn at random among those that are neither such an occurrence nor its successor;
- far: every position 8 or more back takes the token that another sequence has there;
- near: the 7 positions before t are shuffled.

*Kept* is the activation after the change as a part of that before, 0 where it is gone; the *fall* is 1 − kept. The
activation after is the one before plus (x' − x)·w, so that neither the offset nor who else fires plays a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.features.directions import LOCAL_WINDOW, Examples, Sample, encoder_input
from attlas.data.progress import Track, no_track
from attlas.data.stats import student_t
from attlas.interp import HookedModel
from attlas.saes.base import SAE

# How far from a token's rank of frequency its replacement may be.
_RANKS = 10

Change = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


class Tokens:
    """Replacements for tokens, of like frequency in a text, int64 [S, T]; padding (not `text`, bool [S, T]) is none."""

    def __init__(self, tokens: np.ndarray, text: Tensor | None = None) -> None:
        self.tokens = tokens
        self.skip = 1  # the first position, BOS where there is one, stays
        self.lengths = np.full(len(tokens), tokens.shape[1]) if text is None else text.sum(1).numpy()
        body = tokens[:, self.skip :]
        ids, counts = np.unique(body if text is None else body[text[:, self.skip :].numpy()], return_counts=True)
        self._ranked = ids[np.argsort(-counts, kind="stable")]
        self._rank = {int(token): rank for rank, token in enumerate(self._ranked)}

    def like(self, token: int, avoid: int, generator: np.random.Generator) -> int:
        """A token whose frequency is like that of `token`; neither it nor `avoid`."""
        rank = self._rank.get(token, len(self._ranked) - 1)
        near = self._ranked[max(0, rank - _RANKS) : rank + _RANKS + 1]
        near = near[(near != token) & (near != avoid)]
        return int(generator.choice(near)) if len(near) else token

    def _replace(self, row: np.ndarray, at: np.ndarray, current: int, generator: np.random.Generator) -> np.ndarray:
        changed = row.copy()
        for i in at:
            changed[i] = self.like(int(row[i]), current, generator)
        return changed

    def _earlier(self, row: np.ndarray, position: int) -> np.ndarray:
        """Positions of earlier occurrences of the token at `position`."""
        return np.flatnonzero(row[:position] == row[position])

    def copies(self, row: np.ndarray, position: int, generator: np.random.Generator) -> np.ndarray:
        """Earlier occurrences replaced."""
        return self._replace(row, self._earlier(row, position), int(row[position]), generator)

    def control(self, row: np.ndarray, position: int, generator: np.random.Generator) -> np.ndarray:
        """As many other positions replaced (all there are, when those are fewer)."""
        earlier = self._earlier(row, position)
        others = np.setdiff1d(np.arange(self.skip, position), np.concatenate([earlier, earlier + 1]))
        at = generator.choice(others, min(len(earlier), len(others)), replace=False)
        return self._replace(row, at, int(row[position]), generator)

    def far(self, row: np.ndarray, position: int, generator: np.random.Generator) -> np.ndarray:
        """All but the last `LOCAL_WINDOW` positions from another sequence."""
        end = max(self.skip, position + 1 - LOCAL_WINDOW)
        long_enough = np.flatnonzero(self.lengths >= end)
        changed, other = row.copy(), self.tokens[long_enough[generator.integers(len(long_enough))]]
        changed[self.skip : end] = other[self.skip : end]
        return changed

    def near(self, row: np.ndarray, position: int, generator: np.random.Generator) -> np.ndarray:
        """The last positions before `position` in another order."""
        changed, start = row.copy(), max(self.skip, position + 1 - LOCAL_WINDOW)
        changed[start:position] = generator.permutation(row[start:position])
        return changed


@dataclass(frozen=True)
class Rerun:
    """Runs changed sequences: what the encoder reads at each example's position.

    Attributes:
        sae: whose input is read.
        found: the sample that the examples are of.
    """

    model: HookedModel
    sae: SAE
    hook: str
    found: Sample
    batch_size: int
    seed: int

    @torch.no_grad()
    def kept(
        self, examples: Examples, directions: Tensor, change: Change, n_repeats: int = 1, track: Track = no_track
    ) -> np.ndarray:
        """[n] activation kept of each example, mean over repeats.

        Args:
            directions: [P, D], indexed by the examples' direction.
            change: (tokens [T], position, generator) → tokens [T].
        """
        place = torch.stack([examples.sequence, examples.position], dim=1)
        unique, of = place.unique(dim=0, return_inverse=True)  # directions that fire at one token share its runs
        total = np.zeros(len(examples))
        before = self.found.x[examples.sequence, examples.position]
        w = directions[examples.direction]
        for repeat in range(n_repeats):
            after = self._read(unique, change, np.random.default_rng([self.seed, repeat]), track)[of]
            left = examples.activation + ((after - before) * w).sum(1)
            total += (left.clamp_min(0) / examples.activation).double().numpy()
        return total / n_repeats

    def _read(self, place: Tensor, change: Change, generator: np.random.Generator, track: Track) -> Tensor:
        """[m, D] what the encoder reads at (sequence, position) rows after the change."""
        rows = self.found.tokens.numpy()
        changed = np.stack([change(rows[s], t, generator) for s, t in place.tolist()])
        order = place[:, 1].argsort(stable=True)
        read = torch.empty(len(place), self.found.x.shape[-1])
        starts = range(0, len(order), self.batch_size)
        for start in track(starts, "causal checks", len(starts)):
            chosen = order[start : start + self.batch_size]
            end = int(place[chosen, 1].max()) + 1
            z = self.model.capture(torch.from_numpy(changed[chosen.numpy(), :end]), self.hook)[self.hook]
            at = z[torch.arange(len(chosen)), place[chosen, 1].to(z.device)]
            read[chosen] = encoder_input(self.sae, self.sae.flatten_heads(at[:, None])[:, 0]).float().cpu()
        return read


def paired_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student's t interval of paired differences [n]; (NaN, NaN, NaN) for fewer than three."""
    n = len(differences)
    if n < 3:
        return float("nan"), float("nan"), float("nan")
    mean = float(differences.mean())
    half = float(differences.std(ddof=1) / np.sqrt(n) * student_t(n - 1, level))
    return mean, mean - half, mean + half
