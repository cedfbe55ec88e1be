"""The anatomy of attention maps: what every head's map looks like, from queries and keys, in one pass over the data.

Per head: entropy, sink and diagonal mass, mass by local window, mass of the k largest weights, distribution of distance,
mass by key position; and, for language models, previous-token, duplicate-token and induction scores, on the data and on
repeated random tokens. Labels name what a head mostly does, with the score beside each.

For vision models token order is raster order, so previous-token, window and distance columns are NaN (the `vit`
analysis has them in two dimensions), and there are no token ids to repeat.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.attention.config import AnatomyConfig
from attlas.analyses.common.columns import (
    DIAGONAL,
    ENTROPY,
    HEAD,
    LAYER,
    MAX_WEIGHT,
    MEAN_DISTANCE,
    N_QUERIES,
    NORMALIZED,
    PREVIOUS_TOKEN,
    REPEAT_INDUCTION,
    SINK_MASS,
)
from attlas.analyses.common.repeats import repeat_scores, repeated_tokens
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.text import TokenDataset
from attlas.interp import AnyModel, as_hooked, attended
from attlas.kernels import AttentionStats

_F = pa.float64()
_HEAD = (
    LAYER,
    HEAD,
)
MEASURES = (
    ENTROPY,
    NORMALIZED,
    MAX_WEIGHT,
    SINK_MASS,
    DIAGONAL,
    PREVIOUS_TOKEN,
    column("duplicate_token", _F, "fraction", "mean weight on other copies of the query's token"),
    column("induction", _F, "fraction", "mean weight on tokens after earlier copies of the query's token"),
    MEAN_DISTANCE,
)
# label → (column it is read from, threshold), the most specific first; the first that passes names the head *(ours)*.
LABELS = {
    "induction": ("repeat_induction", 0.3),
    "duplicate token": ("repeat_duplicate_token", 0.3),
    "previous token": ("repeat_previous_token", 0.3),
    "self": ("diagonal", 0.4),
    "sink": ("sink_mass", 0.4),
    "local": ("local", 0.6),
    "broad": ("broad", 0.9),
}
MAP_ANATOMY = TableSchema(
    "map_anatomy",
    "one head",
    (
        *_HEAD,
        *MEASURES,
        *[
            column(f"repeat_{name}", _F, "fraction", f"{name.replace('_', ' ')} score on repeated random tokens")
            for name in ("previous_token", "duplicate_token")
        ],
        REPEAT_INDUCTION,
        column("local", _F, "fraction", "mass within the first window, sink and the query itself left out"),
        column("broad", _F, "fraction", "the normalised entropy, as the score of label 'broad'"),
        column("label", pa.string(), "", "what the head mostly does: " + ", ".join(LABELS) + ", or unassigned"),
        column("label_score", _F, "fraction", "score of that label, NaN where unassigned"),
        N_QUERIES,
    ),
)
MAP_MASS = TableSchema(
    "map_mass",
    "one head and one width, distance or number of keys",
    (
        *_HEAD,
        column("kind", pa.string(), "", "window (mass within |i − j| < at), distance (at/2 ≤ |i − j| < at), top_k"),
        column("at", pa.int32(), "positions", "width, upper end of the distance, or number of keys"),
        column("mass", _F, "fraction", "mean over queries"),
    ),
)
MAP_COLUMNS = TableSchema(
    "map_columns",
    "one head and one key position",
    (
        *_HEAD,
        column("position", pa.int32(), "positions", "key position, from 0"),
        column("mass", _F, "queries", "mean over sequences of the mass it receives, summed over queries"),
        column("per_query", _F, "fraction", "the same over the number of queries that can see it"),
    ),
)
SCHEMAS = (MAP_ANATOMY, MAP_MASS, MAP_COLUMNS)


@dataclass(frozen=True)
class AnatomyResult(Result):
    """Columns [layer, head] by name; masses [layer, head] by (kind, at); column_mass [layer, head, position]; seen
    [layer, position], how many queries can see each key."""

    kind: ClassVar[str] = "anatomy"

    columns: dict[str, np.ndarray]
    masses: dict[tuple[str, int], np.ndarray]
    column_mass: np.ndarray
    seen: np.ndarray
    n_queries: int
    config: AnatomyConfig

    def labels(self) -> np.ndarray:
        """Head types [layer, head] of str."""
        return self._labelled()[0]

    def _labelled(self) -> tuple[np.ndarray, np.ndarray]:
        shape = self.columns["entropy"].shape
        label, best = np.full(shape, "unassigned", dtype=object), np.full(shape, np.nan)
        for name, (source, threshold) in LABELS.items():
            values = self.columns[source]
            take = (values >= threshold) & (label == "unassigned")
            label[take], best[take] = name, values[take]
        return label, best

    def tables(self) -> dict[str, pa.Table]:
        layers, heads = self.columns["entropy"].shape
        head = {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
        label, score = self._labelled()
        flat: dict[str, Any] = {name: values.ravel() for name, values in self.columns.items()}
        flat |= {**head, "label": label.ravel(), "label_score": score.ravel()}
        flat["n_queries"] = np.full(layers * heads, self.n_queries)
        rows = [
            {"layer": layer, "head": at, "kind": kind, "at": width, "mass": float(values[layer, at])}
            for (kind, width), values in self.masses.items()
            for layer, at in np.ndindex(layers, heads)
        ]
        index = np.indices(self.column_mass.shape)
        columns: dict[str, Any] = {name: index[i].ravel() for i, name in enumerate(("layer", "head", "position"))}
        columns |= {"mass": self.column_mass.ravel(), "per_query": (self.column_mass / self.seen[:, None]).ravel()}
        return {
            "map_anatomy": MAP_ANATOMY.table(flat),
            "map_mass": MAP_MASS.table(rows),
            "map_columns": MAP_COLUMNS.table(columns),
        }

    def table(self) -> pa.Table:
        return self.tables()["map_anatomy"]

    def plot(self, metric: str = "entropy") -> Any:
        """Heatmap layers × heads of one column, labels on hover."""
        import plotly.graph_objects as go

        heat = go.Heatmap(z=self.columns[metric], text=self.labels(), hovertemplate="%{y}.%{x}: %{z:.3f}<br>%{text}")
        figure = new_figure(heat).update_layout(xaxis_title="head", yaxis_title="layer", title=metric.replace("_", " "))
        return figure.update_yaxes(autorange="reversed", dtick=1)

    def summary(self) -> dict[str, Any]:
        """How many heads have each label, and the strongest of each."""
        label, score = self._labelled()
        found: dict[str, Any] = {"n_queries": self.n_queries}
        for name in (*LABELS, "unassigned"):
            at = np.argwhere(label == name)
            found[f"n_{name.replace(' ', '_')}"] = len(at)
            if len(at) and name != "unassigned":
                best = max(at.tolist(), key=lambda place: score[tuple(place)])
                found[f"{name.replace(' ', '_')}_head"] = f"{best[0]}.{best[1]}"
        return found


@torch.no_grad()
def map_anatomy(
    model: AnyModel,
    data: TokenDataset | ImageDataset,
    config: AnatomyConfig | None = None,
    track: Track = no_track,
) -> AnatomyResult:
    """Dissect the maps of every head; q and k are read once, and nothing T × T is kept.

    Example:
        >>> from attlas.analyses.attention import AnatomyConfig, map_anatomy
        >>> result = map_anatomy(model, text, AnatomyConfig(windows=(4, 8), top_k=(1,)))
        >>> len(result.tables()["map_anatomy"])  # a row a head
        24
    """
    model = as_hooked(model)
    config = config or AnatomyConfig()
    cfg = model.cfg
    skip = config.skip_first if cfg.causal else 0
    sums: list[dict[Any, Tensor]] = [{} for _ in range(cfg.n_layers)]
    n_units = n_queries = 0
    for batch in track(data.batches(config.batch_size), "anatomy of maps"):
        for layer in attended(model, batch):
            n_tokens = layer.q.shape[2]
            stats = layer.stats(
                window=tuple(dict.fromkeys((*config.windows, *_distances(n_tokens)))) if cfg.causal else 1,
                top_k=config.top_k or None,
                column=True,
            )
            for name, value in _layer_sums(stats, skip, cfg.causal, config).items():
                found = sums[layer.layer]
                found[name] = found[name] + value if name in found else value
        n_units += batch.shape[0]
        n_queries += batch.shape[0] * (n_tokens - skip)
    stacked = {name: torch.stack([s[name] for s in sums]).numpy() for name in sums[0]}
    columns = {f.name: stacked[f.name] / n_queries for f in MEASURES if f.name in stacked}
    columns["normalized"] = stacked["normalized"] / stacked["n_ranked"]
    nothing = np.full((cfg.n_layers, cfg.n_heads), np.nan)
    columns |= {f.name: nothing for f in MEASURES if f.name not in columns}
    masses: dict[Any, np.ndarray] = {n: v / n_queries for n, v in stacked.items() if isinstance(n, tuple)}
    columns["local"] = nothing
    if cfg.causal:
        columns["local"] = stacked["local"] / n_queries
        tokens = repeated_tokens(model, seed=config.seed)
        columns |= {f"repeat_{name}": value for name, value in repeat_scores(model, tokens).items()}
    else:
        columns |= {f"repeat_{n}": nothing for n in ("previous_token", "duplicate_token", "induction")}
    columns["broad"] = columns["normalized"]
    seen = np.stack([parts.rule.n_queries(n_tokens).numpy() for parts in model.layers])
    return AnatomyResult(columns, masses, stacked["column_mass"] / n_units, seen, n_queries, config)


def _distances(n_tokens: int) -> list[int]:
    """1, 2, 4 … up to the first that covers every distance."""
    found = [1]
    while found[-1] < n_tokens:
        found.append(2 * found[-1])
    return found


def _layer_sums(stats: AttentionStats, skip: int, causal: bool, config: AnatomyConfig) -> dict[Any, Tensor]:
    """Sums over batch and queries, [H] each, float64 on the CPU; masses under (kind, at)."""

    def total(value: Tensor) -> Tensor:
        return value[:, :, skip:].double().sum((0, 2)).cpu()

    found: dict[Any, Tensor] = {n: total(getattr(stats, n)) for n in ("entropy", "max_weight", "sink_mass", "diagonal")}
    ranked = stats.normalized_entropy
    found["normalized"] = total(ranked.nan_to_num(0))
    found["n_ranked"] = total((~ranked.isnan()).float())
    found |= {("top_k", n): total(mass) for n, mass in stats.top_k_masses.items()}
    assert stats.column_mass is not None
    found["column_mass"] = stats.column_mass.double().sum(0).cpu()
    if not causal:
        return found
    found |= {n: total(getattr(stats, n)) for n in ("previous_token", "mean_distance")}
    assert stats.induction is not None
    assert stats.duplicate is not None
    found["induction"], found["duplicate_token"] = total(stats.induction), total(stats.duplicate)
    windows = {w: total(mass) for w, mass in stats.window_masses.items()}
    found |= {("window", w): windows[w] for w in config.windows}
    at = _distances(stats.entropy.shape[2])
    found |= {("distance", b): windows[b] - windows[a] for a, b in itertools.pairwise(at)}
    found[("distance", 1)] = windows[1]
    # The sink lies inside the window of early queries; there it is a sink, not a neighbour.
    inside = torch.arange(stats.entropy.shape[2], device=stats.entropy.device) < config.windows[0]
    near = stats.window_masses[config.windows[0]] - stats.diagonal - stats.sink_mass * inside
    found["local"] = total(near.clamp(min=0))
    return found
