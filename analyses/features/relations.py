"""How features relate: decoder rows that point alike, activity on the same tokens, phrases they fire on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.features.examples import Example


def neighbours(W_dec: Tensor, n: int = 8, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """The n features with the largest decoder cosine to each: cosines float32 [F, n] and indices [F, n].

    Rows are compared `chunk` at a time, so that F × F is never held.
    """
    unit = torch.nn.functional.normalize(W_dec.detach().float(), dim=-1)
    n = min(n, len(unit) - 1)
    cosines, indices = [], []
    for start in range(0, len(unit), chunk):
        block = unit[start : start + chunk] @ unit.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf  # not itself
        best = block.topk(n, dim=1)
        cosines.append(best.values.cpu())
        indices.append(best.indices.cpu())
    return torch.cat(cosines), torch.cat(indices)


@dataclass
class Coactivation:
    """Which features are active on the same tokens, over the first `n_tokens` tokens of the stream (in seed order).

    Held: one int32 pair for each activation, k · n_tokens of them; counting makes at most k² · n_tokens pairs.
    """

    d_sae: int
    n_tokens: int = 32_768
    seen: int = 0
    _tokens: list[np.ndarray] = field(default_factory=list)
    _features: list[np.ndarray] = field(default_factory=list)

    def add(self, values: Tensor, indices: Tensor) -> None:
        """Sparse codes [B, T, k]; what lies past `n_tokens` is left out."""
        room = self.n_tokens - self.seen
        if room <= 0:
            return
        v, i = values.reshape(-1, values.shape[-1])[:room], indices.reshape(-1, indices.shape[-1])[:room]
        token, slot = torch.nonzero(v > 0, as_tuple=True)
        self._tokens.append((token + self.seen).int().cpu().numpy())
        self._features.append(i[token, slot].int().cpu().numpy())
        self.seen += len(v)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(token, feature) of every activation kept, int32 each."""
        if len(self._tokens) != 1:
            empty = [np.zeros(0, np.int32)]
            self._tokens = [np.concatenate(self._tokens or empty)]
            self._features = [np.concatenate(self._features or empty)]
        return self._tokens[0], self._features[0]

    def set_pairs(self, token: np.ndarray, feature: np.ndarray, seen: int) -> None:
        """Take up what `pairs` gave."""
        self._tokens, self._features, self.seen = [token], [feature], seen

    def strongest(self, n: int = 8, least: int = 3) -> Iterator[dict[str, Any]]:
        """For each feature the n others with the largest φ among those it shares `least` tokens with."""
        both, count = self._counts()
        N = float(self.seen)
        for a in range(self.d_sae):
            at = slice(both.indptr[a], both.indptr[a + 1])
            others, shared = both.indices[at], both.data[at].astype(np.float64)
            keep = (others != a) & (shared >= least)
            others, shared = others[keep], shared[keep]
            phi = _phi(shared, count[a], count[others], N)
            for rank, j in enumerate(np.lexsort((others, -phi))[:n]):
                b = int(others[j])
                yield {
                    "feature": a,
                    "rank": rank,
                    "other": b,
                    "phi": float(phi[j]),
                    "jaccard": float(shared[j] / (count[a] + count[b] - shared[j])),
                    "lift": float(shared[j] * N / (count[a] * count[b])),
                    "n_both": int(shared[j]),
                    "n_tokens": self.seen,
                }

    def phi_matrix(self) -> Any:
        """φ of all pairs that are ever active together, sparse [F, F] (scipy CSR); other pairs are 0, though theirs is
        a little below."""
        both, count = self._counts()
        row = np.repeat(np.arange(self.d_sae), np.diff(both.indptr))
        phi = both.astype(np.float64)
        phi.data = _phi(phi.data, count[row], count[both.indices], float(self.seen))
        return phi

    def _counts(self) -> tuple[Any, np.ndarray]:
        """Tokens on which two features are active, sparse [F, F], and on which each is, [F]."""
        from scipy.sparse import csr_matrix

        token, feature = self.pairs()
        active = csr_matrix((np.ones(len(token), np.int32), (token, feature)), shape=(self.seen, self.d_sae))
        active.data[:] = 1
        return (active.T @ active).tocsr(), np.asarray(active.sum(0)).ravel().astype(np.float64)


def _phi(both: np.ndarray, a: np.ndarray, b: np.ndarray, n: float) -> np.ndarray:
    """Correlation of two indicators from their counts: together, apart, and of all."""
    spread = np.sqrt(a * (n - a) * b * (n - b))
    phi: np.ndarray = (n * both - a * b) / np.maximum(spread, 1e-12)
    return phi


def phrases(
    examples: Iterable[Example], names: dict[int, str], sizes: Sequence[int] = (1, 2, 3), n: int = 4, least: int = 2
) -> Iterator[dict[str, Any]]:
    """What the kept examples of each feature have in common: n-grams that end where it fires, and the token after.

    An n-gram stands when at least `least` examples share it, and gives way to a longer one that as many share.
    """
    of: dict[int, list[Example]] = {}
    for example in examples:
        if example.sequence_tokens is not None:
            of.setdefault(example.feature, []).append(example)
    for feature, mine in sorted(of.items()):
        counts: Counter[tuple[str, tuple[int, ...]]] = Counter()
        for e in mine:
            tokens, at = e.sequence_tokens, e.position
            assert tokens is not None
            for size in sizes:
                if at + 1 >= size:
                    counts["ends here", tuple(int(t) for t in tokens[at + 1 - size : at + 1])] += 1
            if at + 1 < len(tokens):
                counts["comes next", (int(tokens[at + 1]),)] += 1
        kept = [(key, c) for key, c in counts.items() if c >= least and not _contained(key, c, counts)]
        kept.sort(key=lambda entry: (-entry[1], -len(entry[0][1]), entry[0]))
        for rank, ((place, ids), c) in enumerate(kept[:n]):
            text = "".join(names.get(t, str(t)) for t in ids)
            yield {
                "feature": feature,
                "rank": rank,
                "place": place,
                "text": text,
                "n_tokens": len(ids),
                "n_examples": c,
                "share": c / len(mine),
            }


def phrase_shares(tokens: Tensor, direction: Tensor, sequence: Tensor, position: Tensor, n: int) -> np.ndarray:
    """Share of each direction's examples that have their most common token: where it fires, or the one after; float64 [n].

    No phrase has more examples than the token it ends with, so this is the share of the top phrase of any length.

    Args:
        tokens: int64 [S, T].
        direction, sequence, position: int64 [m], an example each; NaN for directions without one.
    """
    most = np.zeros(n)
    has_next = position + 1 < tokens.shape[1]
    for at, keep in ((position, torch.ones_like(has_next)), (position + 1, has_next)):
        keys = (direction[keep] << 32) | tokens[sequence[keep], at[keep]]
        unique, times = np.unique(keys.numpy(), return_counts=True)
        np.maximum.at(most, unique >> 32, times)
    of = np.bincount(direction.numpy(), minlength=n)
    return np.where(of > 0, most / np.maximum(of, 1), np.nan)


def _contained(key: tuple[str, tuple[int, ...]], count: int, counts: Counter[tuple[str, tuple[int, ...]]]) -> bool:
    """Whether a longer n-gram with the same end has as many examples."""
    place, ids = key
    return any(
        other[0] == place and len(other[1]) > len(ids) and other[1][-len(ids) :] == ids and c == count
        for other, c in counts.items()
    )
