"""Accumulators over a stream of sparse codes: everything a feature table needs, in memory that does not grow with tokens.

Held for F features: counts and sums [F], a histogram [F, bins], the best `n_top` sequences of each feature and a
uniform sample of `n_sample` of its activations, [n, F] each: F · (28 + 8 · bins + 16 · (n_top + n_sample)) bytes; a batch
of B sequences adds about 40 · B · F while it is merged. Token counts take 24 bytes a distinct (feature, token) pair, at
most min(tokens · k, F · d_vocab) of them, and as much again for `PENDING` new ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

N_BINS = 40
# New (feature, token) entries gathered before they are merged into the counts.
PENDING = 1 << 21
# Histogram edges: 40 bins of equal width in log2 from 2^-10 to 2^10; values outside fall into the first or last bin.
EDGES = torch.logspace(-10, 10, N_BINS + 1, base=2.0)


@dataclass
class TopEntries:
    """Best entries of each feature, [n, F]: ordering key, activation, sequence, position; sequence −1 is empty."""

    key: Tensor
    value: Tensor
    sequence: Tensor
    position: Tensor

    @classmethod
    def empty(cls, n: int, d_sae: int) -> TopEntries:
        ints = torch.full((n, d_sae), -1, dtype=torch.int32)
        return cls(torch.full((n, d_sae), -torch.inf), torch.zeros(n, d_sae), ints, ints.clone())

    def merge(self, key: Tensor, value: Tensor, sequence: Tensor, position: Tensor) -> None:
        """Keep the n largest keys of what is held and what is new, all [m, F]."""
        both = torch.cat([self.key, key])
        self.key, order = both.topk(self.key.shape[0], dim=0)
        self.value = torch.cat([self.value, value]).gather(0, order)
        self.sequence = torch.cat([self.sequence, sequence.int()]).gather(0, order)
        self.position = torch.cat([self.position, position.int()]).gather(0, order)
        gone = torch.isinf(self.key)
        self.sequence[gone] = -1


@dataclass
class FeatureStream:
    """Feed batches of codes with `add`.

    Attributes:
        d_sae: number of features F.
        n_top: sequences kept for the top examples.
        n_sample: activations kept as a uniform sample (one a sequence at most).
        seed: of the sample.
    """

    d_sae: int
    n_top: int = 12
    n_sample: int = 48
    seed: int = 0
    n_tokens: int = 0
    n_sequences: int = 0
    count: Tensor = field(init=False)
    total: Tensor = field(init=False)
    maximum: Tensor = field(init=False)
    histogram: Tensor = field(init=False)
    top: TopEntries = field(init=False)
    sample: TopEntries = field(init=False)

    def __post_init__(self) -> None:
        self.count = torch.zeros(self.d_sae, dtype=torch.int64)
        self.total = torch.zeros(self.d_sae, dtype=torch.float64)
        self.maximum = torch.zeros(self.d_sae)
        self.histogram = torch.zeros(self.d_sae * N_BINS, dtype=torch.int64)
        self.top = TopEntries.empty(self.n_top, self.d_sae)
        self.sample = TopEntries.empty(self.n_sample, self.d_sae)
        self.generator = torch.Generator().manual_seed(self.seed)
        self._pairs: dict[str, np.ndarray] = {}
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, values: Tensor, indices: Tensor, tokens: Tensor | None = None, keep: Tensor | None = None) -> None:
        """One batch of sequences.

        Args:
            values, indices: [B, T, k] active features of every token; entries with value ≤ 0 are not active.
            tokens: int64 [B, T], for token summaries.
            keep: bool [B, T], the positions that count; None counts all.
        """
        B, T, _ = values.shape
        if keep is not None:
            values = values.masked_fill(~keep.to(values.device)[..., None], 0)
        b, t, slot = torch.nonzero(values > 0, as_tuple=True)
        v = values[b, t, slot].float().cpu()
        f = indices[b, t, slot].cpu()
        b, t = b.cpu(), t.cpu()
        self.count += torch.bincount(f, minlength=self.d_sae)
        self.total.index_add_(0, f, v.double())
        self.maximum.scatter_reduce_(0, f, v, "amax")
        bins = (torch.bucketize(v, EDGES) - 1).clamp(0, N_BINS - 1)
        self.histogram += torch.bincount(f * N_BINS + bins, minlength=self.d_sae * N_BINS)
        self._merge(self.top, v, v, b, t, f, B)
        self._merge(self.sample, torch.rand(len(v), generator=self.generator), v, b, t, f, B)
        if tokens is not None and len(v):
            self._add_pairs(f.numpy(), tokens[b.to(tokens.device), t.to(tokens.device)].cpu().numpy(), v.numpy())
        self.n_tokens += B * T if keep is None else int(keep.sum())
        self.n_sequences += B

    def _merge(self, kept: TopEntries, key: Tensor, v: Tensor, b: Tensor, t: Tensor, f: Tensor, B: int) -> None:
        """The entry with the largest key of each (sequence, feature), merged into what is kept."""
        cell = b * self.d_sae + f
        best = torch.full((B * self.d_sae,), -torch.inf).scatter_reduce_(0, cell, key, "amax")
        winner = key == best[cell]
        value = torch.zeros(B * self.d_sae)
        position = torch.zeros(B * self.d_sae, dtype=torch.int64)
        value[cell[winner]] = v[winner]
        position[cell[winner]] = t[winner]
        sequence = (torch.arange(B) + self.n_sequences)[:, None].expand(B, self.d_sae)
        shape = (B, self.d_sae)
        kept.merge(best.view(shape), value.view(shape), sequence, position.view(shape))

    def _add_pairs(self, f: np.ndarray, tokens: np.ndarray, v: np.ndarray) -> None:
        """Gather activation by (feature, token); merged when `PENDING` have come together."""
        self._pending.append((f.astype(np.int64) << 32 | tokens.astype(np.int64), v.astype(np.float64)))
        if sum(len(keys) for keys, _ in self._pending) >= PENDING:
            self.pairs()

    def pairs(self) -> dict[str, np.ndarray]:
        """Activation summed (`sum`) and counted (`n`) by `key` = feature · 2³² + token, sorted by key."""
        if self._pending:
            keys, v = (np.concatenate(column) for column in zip(*self._pending, strict=True))
            self._pending = []
            n = np.ones(len(keys), dtype=np.int64)
            if self._pairs:
                keys = np.concatenate([self._pairs["key"], keys])
                v, n = np.concatenate([self._pairs["sum"], v]), np.concatenate([self._pairs["n"], n])
            unique, inverse = np.unique(keys, return_inverse=True)
            self._pairs = {
                "key": unique,
                "sum": np.bincount(inverse, weights=v, minlength=len(unique)),
                "n": np.bincount(inverse, weights=n, minlength=len(unique)).astype(np.int64),
            }
        return self._pairs

    def set_pairs(self, pairs: dict[str, np.ndarray]) -> None:
        """Take up counts that `pairs` gave."""
        self._pairs, self._pending = (pairs if len(pairs["key"]) else {}), []

    def top_tokens(self, n: int = 5) -> dict[int, list[tuple[int, float, int]]]:
        """feature → (token id, share of the feature's total activation, times active), the largest shares first."""
        found: dict[int, list[tuple[int, float, int]]] = {}
        pairs = self.pairs()
        if not pairs:
            return found
        feature, token = pairs["key"] >> 32, pairs["key"] & 0xFFFFFFFF
        order = np.lexsort((-pairs["sum"], feature))
        total = self.total.numpy()
        for at in order:
            entries = found.setdefault(int(feature[at]), [])
            if len(entries) < n:
                share = float(pairs["sum"][at] / total[feature[at]])
                entries.append((int(token[at]), share, int(pairs["n"][at])))
        return found
