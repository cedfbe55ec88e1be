"""By what heads are alike: their patterns on the same queries, and the subspaces that their weights read and write.

Patterns are compared as the square roots of their weights: the mean over queries of Σ √(a·b) is Bhattacharyya's coefficient,
1 for equal patterns and 0 for patterns that share no key, and one matrix product gives it for all pairs of heads. Many heads
share little but the first position, so the same cosine is taken without that key too; there a query counts by how much of
its mass lies elsewhere. Subspaces are compared by their principal angles (Björck & Golub 1973): the mean squared cosine,
1 for the same subspace, d_head / d_model for random ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.heads.config import SimilarConfig
from attlas.analyses.heads.weights import folded
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track
from attlas.data.stats import bootstrap_mean
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel, attended
from attlas.interp.config import TRAITS

MOST_GROUPS, MOST_CELLS = 64, 2**25  # of groups that intervals are drawn from, and of their numbers
PATTERNS = ("pattern", "pattern_off_sink", "pattern_elsewhere")
SUBSPACES = ("ov_reads", "ov_writes", "qk_queries", "qk_keys")


class PatternGroups:
    """What `pattern_off_sink` is made of, by group of sequences (every so-many-th one), for its intervals.

    Args:
        n_sequences: of the data; each is a group of its own while memory has room.
    """

    def __init__(self, n_sequences: int) -> None:
        self.n_sequences = n_sequences
        self.products: Tensor | None = None  # float32 [groups, N, N]
        self.squares: Tensor | None = None  # [groups, N]

    def add(self, first: int, products: Tensor, squares: Tensor) -> None:
        """Of a batch's sequences from `first` on: products [B, N, N] and squared norms [B, N] of their roots of patterns."""
        if self.products is None or self.squares is None:
            n = products.shape[1]
            n_groups = max(1, min(self.n_sequences, MOST_GROUPS, MOST_CELLS // n**2))
            self.products, self.squares = products.new_zeros(n_groups, n, n), squares.new_zeros(n_groups, n)
        at = (first + torch.arange(len(products), device=products.device)) % len(self.products)
        self.products.index_add_(0, at, products)
        self.squares.index_add_(0, at, squares)

    def interval(self, pairs: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval over groups of the similarity of pairs int64 [P, 2], low and high, float64 [P].

        The bootstrap-t of the jackknife's pseudo-values (Tukey 1958), n·s − (n − 1)·s without one group, whose mean stands for
        s. NaN below MIN_UNITS groups.
        """
        if self.products is None or self.squares is None:
            return np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
        one, other = torch.from_numpy(pairs).to(self.products.device).T
        products = self.products[:, one, other].double()
        a, b = self.squares[:, one].double(), self.squares[:, other].double()

        def cosine(product: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return product / (a * b).clamp_min(1e-30).sqrt()

        n = len(products)
        whole = cosine(products.sum(0), a.sum(0), b.sum(0))
        without = cosine(products.sum(0) - products, a.sum(0) - a, b.sum(0) - b)
        _, low, high = bootstrap_mean((n * whole - (n - 1) * without).cpu().numpy(), seed=seed)
        return np.clip(low, 0, 1), np.clip(high, 0, 1)


def alike_by_patterns(
    models: Sequence[HookedModel],
    data: TokenDataset | ImageDataset,
    config: SimilarConfig,
    track: Track,
    title: str = "similar heads",
    groups: PatternGroups | None = None,
) -> dict[str, np.ndarray]:
    """Cosines of √patterns between all heads of all models, float64 [N, N] each, heads in order of model, layer and head.

    Args:
        groups: takes what pattern_off_sink is made of, for its intervals.

    Returns:
        pattern, pattern_off_sink, and pattern_elsewhere: off the first position too, one head on a sequence and the other on
        the next one of the batch, at the same queries (what two heads share whatever the text says); NaN where no batch
        holds two sequences.

    Raises:
        ConfigError: sequences of one token, or models that see the data as sequences of different lengths.
    """
    generator = torch.Generator().manual_seed(config.seed)
    sums: dict[str, Tensor | float] = dict.fromkeys(PATTERNS, 0.0)
    norms: dict[str, Tensor | float] = dict.fromkeys(("pattern", "pattern_off_sink"), 0.0)
    paired: Tensor | float = 0.0  # squared norms of what elsewhere compares
    for index, batch in enumerate(track(data.batches(config.batch_size), title)):
        roots = _roots(models, batch, config.n_rows, generator)  # [B, N, R, T]
        for name, part in (("pattern", roots), ("pattern_off_sink", roots[..., 1:])):
            flat = part.flatten(2)
            product = flat @ flat.mT
            sums[name] = sums[name] + product.double().sum(0)
            norms[name] = norms[name] + flat.square().double().sum((0, 2))
        if groups is not None:
            groups.add(index * config.batch_size, product, flat.square().sum(2))
        if len(batch) > 1:
            other = flat.roll(-1, 0)
            product = (flat @ other.mT).double().sum(0)
            sums["pattern_elsewhere"] = sums["pattern_elsewhere"] + (product + product.T) / 2
            paired = paired + flat.square().double().sum((0, 2))
    found = {name: _cosine(sums[name], norms[name]) for name in norms}
    empty = np.full_like(found["pattern"], np.nan)
    found["pattern_elsewhere"] = _cosine(sums["pattern_elsewhere"], paired) if torch.is_tensor(paired) else empty
    return found


def _roots(models: Sequence[HookedModel], batch: Tensor, n_rows: int, generator: torch.Generator) -> Tensor:
    """Square roots of the patterns of every head at some queries, the same of every sequence, float [B, N, R, T]."""
    found: list[Tensor] = []
    queries: Tensor | None = None
    for model in models:
        for layer in attended(model, batch):
            n_tokens = layer.q.shape[2]
            if n_tokens < 2:
                raise ConfigError("sequences of one token have no patterns to compare; give longer ones")
            if queries is None:
                chosen = torch.rand(n_tokens - 1, generator=generator).argsort()[:n_rows].sort().values + 1
                queries = chosen.expand(len(batch), -1)
            if found and found[0].shape[-1] != n_tokens:
                raise ConfigError(
                    f"{model.name} reads the data as {n_tokens} tokens, {models[0].name} as {found[0].shape[-1]}; only "
                    "models that read it alike can be compared"
                )
            found.append(layer.of_queries(queries.to(layer.q.device)).float().sqrt().to(models[0].device))
    return torch.cat(found, 1)


def _cosine(products: Tensor | float, norms: Tensor | float) -> np.ndarray:
    assert isinstance(products, Tensor)
    assert isinstance(norms, Tensor)
    size = norms.clamp_min(1e-30).sqrt()
    found: np.ndarray = (products / (size[:, None] * size)).clamp(0, 1).cpu().numpy()
    return found


def can_compare_weights(models: Sequence[HookedModel]) -> bool:
    """Whether weights of heads say what they read and write, in one residual stream."""
    plain = all(not {"qk_norm", "post_norm"} & model.cfg.traits & set(TRAITS) for model in models)
    return plain and len({model.cfg.d_model for model in models}) == 1


@torch.no_grad()
def alike_by_weights(models: Sequence[HookedModel]) -> dict[str, np.ndarray]:
    """Mean squared cosine of principal angles between all heads of all models, float64 [N, N] each.

    Returns:
        ov_reads (of W_V), ov_writes (of W_O), qk_queries (of W_Q) and qk_keys (of W_K), norms in front folded in.
    """
    bases: dict[str, list[Tensor]] = {name: [] for name in SUBSPACES}
    for model in models:
        weights = folded(model)
        spans = (weights.W_V, weights.W_O.mT, weights.W_Q, weights.W_K)
        for name, span in zip(SUBSPACES, spans, strict=True):
            basis = torch.linalg.qr(span.flatten(0, 1)).Q.float()  # [heads, d_model, d_head]
            bases[name] += list(basis.to(models[0].device))
    return {name: _overlaps(parts) for name, parts in bases.items()}


def _overlaps(bases: list[Tensor]) -> np.ndarray:
    """‖AᵀB‖² over the smaller of both dimensions, a head of rows at a time; bases [d_model, d_head]."""
    widths = torch.tensor([basis.shape[1] for basis in bases])
    whole = torch.cat(bases, 1)  # [d_model, Σ d_head]
    of = torch.repeat_interleave(torch.arange(len(bases)), widths).to(whole.device)
    found = torch.zeros(len(bases), len(bases), dtype=torch.float64)
    for row, basis in enumerate(bases):
        energy = (basis.T @ whole).square().sum(0)
        shared = energy.new_zeros(len(bases)).index_add_(0, of, energy)
        found[row] = shared.double().cpu() / torch.minimum(widths, widths[row])
    as_numpy: np.ndarray = found.numpy()
    return as_numpy
