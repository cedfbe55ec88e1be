"""Which heads of a model, or of two models, are alike: by pattern on the same text, and by what their weights read and write.

Clark et al. 2019 (arXiv 1906.04341) cluster heads by the Jensen–Shannon divergence of their patterns; the coefficient taken
here (see `alikeness`) ranks pairs much as it does, and is one matrix product. Controls *(ours)*: patterns on another
sequence, and a model of random weights on the same text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.common.columns import HEAD, LAYER, RANK_BY_STRENGTH
from attlas.analyses.heads.alikeness import (
    PATTERNS,
    SUBSPACES,
    PatternGroups,
    alike_by_patterns,
    alike_by_weights,
    can_compare_weights,
)
from attlas.analyses.heads.config import SimilarConfig
from attlas.analyses.heads.controls import random_model
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked

_F = pa.float64()
OF_MODEL = column("of_model", pa.int8(), "", "0 for the model itself, 1 for the one it is compared with")
MEASURES = (
    column("pattern", _F, "0 … 1", "Bhattacharyya coefficient of both patterns, mean over queries"),
    column("pattern_off_sink", _F, "0 … 1", "cosine of the roots of both patterns without the first position"),
    column("pattern_elsewhere", _F, "0 … 1", "control: the same, the other head on another sequence"),
    column("ov_reads", _F, "0 … 1", "mean squared cosine of the principal angles of what W_V reads; null if unknown"),
    column("ov_writes", _F, "0 … 1", "the same of what W_O writes"),
    column("qk_queries", _F, "0 … 1", "the same of what W_Q reads"),
    column("qk_keys", _F, "0 … 1", "the same of what W_K reads"),
)
HEAD_SIMILAR = TableSchema(
    "head_similar",
    "one head and one that is among the most similar by any measure",
    (
        OF_MODEL,
        LAYER,
        HEAD,
        RANK_BY_STRENGTH,
        column("other_of_model", pa.int8(), "", "model of the other head, as in of_model"),
        column("other_layer", pa.int16(), "", "layer of the other head"),
        column("other_head", pa.int16(), "", "the other head"),
        *MEASURES,
        column("alike_low", _F, "0 … 1", "95 % interval over sequences of pattern_off_sink; null below 8 of them"),
        column("alike_high", _F, "0 … 1", "the same, the upper end"),
    ),
)
HEAD_CLUSTERS = TableSchema(
    "head_clusters",
    "one head",
    (
        OF_MODEL,
        LAYER,
        HEAD,
        column(
            "pattern_cluster", pa.int16(), "", "cluster by pattern off the first position, from 0, the largest first"
        ),
        column("cluster_size", pa.int16(), "heads", "heads in it"),
        column("within", _F, "0 … 1", "mean similarity with the others of the cluster; null where it is alone"),
        column("centre", pa.bool_(), "", "of all heads of the cluster the most similar to the others"),
    ),
)
HEAD_SIMILARITY = TableSchema(
    "head_similarity",
    "one measure of similarity, over all pairs of heads",
    (
        column("compared_by", pa.string(), "", "a column of table head_similar"),
        column("pair_median", _F, "0 … 1", "of all pairs"),
        column("pair_q95", _F, "0 … 1", "95th percentile of all pairs"),
        column("random_pair_median", _F, "0 … 1", "control: of all pairs of a model of random weights"),
        column("random_pair_q95", _F, "0 … 1", "control: 95th percentile of those"),
    ),
)
SCHEMAS = (HEAD_SIMILAR, HEAD_CLUSTERS, HEAD_SIMILARITY)
BY = "pattern_off_sink"  # what ranks and clusters


@dataclass(frozen=True)
class SimilarHeads(Result):
    """Similarities of all pairs of heads.

    Attributes:
        heads: (model, layer, head) of each of N heads; model is 0, or 1 for the model compared with.
        measures: name → float64 [N, N], 1 for a head and itself (but for pattern_elsewhere); those of weights are missing
            where they say nothing.
        random: the same of a model of random weights, [M, M].
        clusters: int64 [N], numbered by size.
        groups: what intervals of pattern_off_sink are drawn from.
    """

    kind: ClassVar[str] = "head_similar"

    heads: list[tuple[int, int, int]]
    measures: dict[str, np.ndarray]
    random: dict[str, np.ndarray]
    clusters: np.ndarray
    config: SimilarConfig
    about: dict[str, Any] = field(default_factory=dict)
    groups: PatternGroups | None = None

    def like(self, layer: int, head: int, n: int = 5, by: str = BY, *, model: int = 0) -> list[tuple[str, float]]:
        """(name, similarity) of the heads most like one; names of the other model's begin with a star."""
        row = self.measures[by][self.heads.index((model, layer, head))]
        order = [i for i in np.argsort(-row, kind="stable") if self.heads[i] != (model, layer, head)]
        return [(self._name(i), float(row[i])) for i in order[:n]]

    def _name(self, at: int) -> str:
        model, layer, head = self.heads[at]
        return f"{'*' if model else ''}{layer}.{head}"

    def tables(self) -> dict[str, pa.Table]:
        return {
            "head_similar": HEAD_SIMILAR.table(self._pair_rows()),
            "head_clusters": HEAD_CLUSTERS.table(self._cluster_rows()),
            "head_similarity": HEAD_SIMILARITY.table(self._measure_rows()),
        }

    def _pair_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        pairs: list[tuple[int, int]] = []
        n_kept = self.config.n_similar
        for at, (model, layer, head) in enumerate(self.heads):
            order = {
                name: [i for i in np.argsort(-m[at], kind="stable") if i != at] for name, m in self.measures.items()
            }
            kept = {i for name, places in order.items() if name != "pattern_elsewhere" for i in places[:n_kept]}
            for rank, other in enumerate(i for i in order[BY] if i in kept):
                row: dict[str, Any] = {"of_model": model, "layer": layer, "head": head, "rank": rank}
                row |= dict(zip(("other_of_model", "other_layer", "other_head"), self.heads[other], strict=True))
                rows.append(row | {f.name: self._value(f.name, at, other) for f in MEASURES})
                pairs.append((at, other))
        low, high = self.interval(np.array(pairs, dtype=np.int64).reshape(-1, 2))
        for row, least, most in zip(rows, low.tolist(), high.tolist(), strict=True):
            known = not np.isnan(least)
            row |= {"alike_low": least if known else None, "alike_high": most if known else None}
        return rows

    def interval(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval over sequences of `pattern_off_sink`, low and high, float64 [P]; NaN below 8 sequences.

        Args:
            pairs: places in `heads`, int64 [P, 2].
        """
        if self.groups is None:
            return np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
        return self.groups.interval(pairs, seed=self.config.seed)

    def _value(self, name: str, one: int, other: int) -> float | None:
        if name not in self.measures or np.isnan(self.measures[name][one, other]):
            return None
        return float(self.measures[name][one, other])

    def _cluster_rows(self) -> list[dict[str, Any]]:
        rows = []
        within, centre = self._within()
        size = np.bincount(self.clusters)
        for at, (model, layer, head) in enumerate(self.heads):
            cluster = int(self.clusters[at])
            row = {
                "of_model": model,
                "layer": layer,
                "head": head,
                "pattern_cluster": cluster,
                "cluster_size": size[cluster],
            }
            alone = bool(np.isnan(within[at]))
            rows.append(row | {"within": None if alone else float(within[at]), "centre": bool(centre[at])})
        return rows

    def _within(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean similarity with the rest of the cluster, and which head of each has the largest."""
        same = (self.clusters[:, None] == self.clusters) & ~np.eye(len(self.heads), dtype=bool)
        n = same.sum(1)
        within = np.where(n > 0, (self.measures[BY] * same).sum(1) / np.maximum(n, 1), np.nan)
        centre = np.zeros(len(self.heads), dtype=bool)
        for cluster in range(self.clusters.max() + 1):
            members = np.flatnonzero(self.clusters == cluster)
            centre[members[np.argmax(np.nan_to_num(within[members], nan=-1))]] = True
        return within, centre

    def _measure_rows(self) -> list[dict[str, Any]]:
        rows = []
        for name, values in self.measures.items():
            row: dict[str, Any] = {"compared_by": name}
            for prefix, matrix in (("", values), ("random_", self.random.get(name))):
                pairs = np.empty(0) if matrix is None else matrix[np.triu_indices(len(matrix), 1)]
                known = len(pairs) > 0 and not np.isnan(pairs).any()
                row[f"{prefix}pair_median"] = float(np.median(pairs)) if known else None
                row[f"{prefix}pair_q95"] = float(np.quantile(pairs, 0.95)) if known else None
            rows.append(row)
        return rows

    def plot(self, by: str = BY) -> Any:
        """Heatmap of all pairs, heads in the order of their clusters."""
        import plotly.graph_objects as go

        order = np.lexsort((np.arange(len(self.heads)), self.clusters))
        names = [self._name(i) for i in order]
        figure = new_figure(go.Heatmap(z=self.measures[by][np.ix_(order, order)], x=names, y=names, zmin=0, zmax=1))
        figure.update_layout(title=f"similarity of heads: {by.replace('_', ' ')}", xaxis_type="category")
        return figure.update_yaxes(autorange="reversed", type="category")

    def summary(self) -> dict[str, Any]:
        """The most similar pair, and how many clusters there are beside those of random weights."""
        found: dict[str, Any] = {**self.about, "n_heads": len(self.heads)}
        size = np.bincount(self.clusters)
        found |= {"n_clusters": len(size), "largest_cluster": int(size.max()), "n_alone": int((size == 1).sum())}
        if len(self.heads) > 1:
            pairs = np.where(np.tri(len(self.heads), dtype=bool), -1, self.measures[BY])
            one, other = np.unravel_index(int(pairs.argmax()), pairs.shape)
            found["most_similar"] = f"{self._name(int(one))} and {self._name(int(other))}"
            found["largest_similarity"] = float(pairs.max())
        if self.random:
            found["random_n_clusters"] = len(np.bincount(clusters_of(self.random[BY], self.config.alike)))
        return found


def clusters_of(similarity: np.ndarray, alike: float) -> np.ndarray:
    """Clusters of heads by average linkage, cut where the mean similarity of two clusters falls below `alike`.

    Args:
        similarity: float [N, N], symmetric.

    Returns: int64 [N], numbered from 0 by size, the largest first (ties: by their first head).
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(similarity) < 2:
        return np.zeros(len(similarity), dtype=np.int64)
    distance = np.clip(1 - (similarity + similarity.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    found = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - alike, "distance") - 1
    size = np.bincount(found)
    first = {int(cluster): int(np.flatnonzero(found == cluster)[0]) for cluster in np.unique(found)}
    order = sorted(first, key=lambda cluster: (-size[cluster], first[cluster]))
    new = np.empty(len(order), dtype=np.int64)
    new[order] = np.arange(len(order))
    numbered: np.ndarray = new[found]
    return numbered


def similar_heads(
    model: AnyModel,
    data: TokenDataset | ImageDataset,
    config: SimilarConfig | None = None,
    *,
    other: AnyModel | None = None,
    track: Track = no_track,
) -> SimilarHeads:
    """Compare every head with every other, of one model or of two.

    Args:
        data: packed text, or images.
        other: a second model or checkpoint that reads the same tokens or images. Subspaces are compared where both have
            the same width; they say something for checkpoints of one training, whose residual streams have one basis.

    Memory: n_rows × T weights of every head of a batch, and a few numbers a pair of heads.

    Raises:
        ConfigError: sequences of one token, or models that read the data differently.
        UnsupportedModelError: a pruned model that lacks heads.

    Example:
        >>> from attlas.analyses.heads import SimilarConfig, similar_heads
        >>> found = similar_heads(model, text, SimilarConfig(n_rows=4, n_control=0))
        >>> found.measures["pattern_off_sink"].shape  # all pairs of heads
        (24, 24)
        >>> len(found.like(3, 0, n=2))
        2
    """
    config, model = config or SimilarConfig(), as_hooked(model)
    models = [model] if other is None else [model, as_hooked(other)]
    if len(models) > 1:
        _check_same_tokens(*models)
    groups = PatternGroups(len(data))
    measures = alike_by_patterns(models, data, config, track, groups=groups)
    by_weights = config.weights and can_compare_weights(models)
    if by_weights:
        measures |= alike_by_weights(models)
    random: dict[str, np.ndarray] = {}
    if config.n_control:
        fresh = random_model(model, config.seed)
        title = "control: random weights"
        random = alike_by_patterns([fresh], data.take(min(config.n_control, len(data))), config, track, title)
        if by_weights:
            random |= alike_by_weights([fresh])
    heads = [
        (of, layer, head)
        for of, each in enumerate(models)
        for layer in range(each.cfg.n_layers)
        for head in range(each.cfg.n_heads)
    ]
    about = {"n_sequences": len(data), "measures": [n for n in (*PATTERNS, *SUBSPACES) if n in measures]}
    if len(models) > 1:
        about["compared_with"] = models[1].name
    return SimilarHeads(heads, measures, random, clusters_of(measures[BY], config.alike), config, about, groups)


def _check_same_tokens(model: HookedModel, other: HookedModel) -> None:
    """Raises ConfigError where token ids mean different texts, or one reads text and the other images."""
    if (model.cfg.family == "vit") != (other.cfg.family == "vit"):
        raise ConfigError(f"{model.name} and {other.name} do not both read text; compare models of one kind")
    vocabularies = [None if m.tokenizer is None else m.tokenizer.get_vocab() for m in (model, other)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise ConfigError(f"{model.name} and {other.name} have different tokenizers, so no text is the same to both")
