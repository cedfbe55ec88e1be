"""Which layers can choose the keys for the layers above them (after DELTA: decoding with selected tokens).

coverage[s, l]: the attention mass at layer l that falls on the k keys which layer s, by its attention summed over heads,
gives most to; averaged over heads and queries. If it is near 1, layer l may attend to layer s's keys alone. A partition
makes each layer full (it reads every key and may select) or following (it reads the keys of the last full layer before
it); the best one for each number of full layers is found by dynamic programming. For vision models keys are patches and
prefix tokens, and nothing is causal.

Beside it, per head, the share of keys needed for 90 % of the mass (after ALISA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.attention.config import SelectionConfig
from attlas.analyses.common.columns import HEAD, LAYER
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import AnyModel, as_hooked, attended

# Weights of all layers and heads held at a time: one block of queries of one sequence.
_BLOCK_ELEMENTS = 1 << 23
_F = pa.float64()
COVERAGE = TableSchema(
    "selection_coverage",
    "one pair of layers and one number of keys",
    (
        column("k", pa.int32(), "keys", "how many keys the selecting layer keeps for each query"),
        column("selector", pa.int16(), "", "layer s whose keys are kept"),
        column("layer", pa.int16(), "", "layer l whose mass is counted"),
        column("coverage", _F, "fraction", "mean over heads and queries of the mass of l on the keys of s"),
        column(
            "n_queries",
            pa.int64(),
            "queries",
            "queries with more than k keys in some layer; others are covered trivially",
        ),
    ),
)
PARTITION = TableSchema(
    "selection_partition",
    "one layer of the best partition with so many full layers",
    (
        column("k", pa.int32(), "keys", "how many keys are kept"),
        column("n_full", pa.int16(), "layers", "full and selecting layers together"),
        LAYER,
        column("role", pa.string(), "", "full (no layer follows it), selecting, or following"),
        column("selector", pa.int16(), "", "whose keys it reads; itself unless following"),
        column("coverage", _F, "fraction", "mass on those keys; 1 unless following"),
    ),
)
KEY_SHARE = TableSchema(
    "key_share",
    "one head",
    (
        LAYER,
        HEAD,
        column("share", _F, "fraction", "mean share of a query's keys that hold the asked part of its mass"),
        column("keys", _F, "keys", "mean number of them"),
        column("mass", _F, "fraction", "the part asked for"),
    ),
)
SCHEMAS = (COVERAGE, PARTITION, KEY_SHARE)


@dataclass(frozen=True)
class Partition:
    """Roles of the layers: selector[l] is l itself for full layers; value is the mean coverage over all layers."""

    selector: tuple[int, ...]
    value: float

    def role(self, layer: int) -> str:
        if self.selector[layer] != layer:
            return "following"
        return "selecting" if self.selector.count(layer) > 1 else "full"


@dataclass(frozen=True)
class SelectionResult(Result):
    """coverage by k: [selector, layer] (NaN where no query has more than k keys); share and keys [layer, head]."""

    kind: ClassVar[str] = "selection"

    coverage: dict[int, np.ndarray]
    n_queries: dict[int, int]
    share: np.ndarray
    keys: np.ndarray
    config: SelectionConfig

    def partition(self, n_full: int, k: int | None = None) -> Partition:
        """The best partition with `n_full` layers that read every key."""
        return best_partition(self.coverage[self.config.top_k[0] if k is None else k], n_full)

    def tables(self) -> dict[str, pa.Table]:
        layers, heads = self.share.shape
        coverage = [
            {"k": k, "selector": s, "layer": layer, "coverage": float(c[s, layer]), "n_queries": self.n_queries[k]}
            for k, c in self.coverage.items()
            for s, layer in np.ndindex(layers, layers)
        ]
        parts = []
        for k, c in self.coverage.items():
            for n_full in range(1, layers + 1) if not np.isnan(c).any() else ():
                found = best_partition(c, n_full)
                for layer, s in enumerate(found.selector):
                    row = {"k": k, "n_full": n_full, "layer": layer, "role": found.role(layer), "selector": s}
                    parts.append(row | {"coverage": 1.0 if s == layer else float(c[s, layer])})
        share = {
            "layer": np.repeat(np.arange(layers), heads),
            "head": np.tile(np.arange(heads), layers),
            "share": self.share.ravel(),
            "keys": self.keys.ravel(),
            "mass": np.full(layers * heads, self.config.mass),
        }
        return {
            "selection_coverage": COVERAGE.table(coverage),
            "selection_partition": PARTITION.table(parts),
            "key_share": KEY_SHARE.table(share),  # type: ignore[arg-type]
        }

    def table(self) -> pa.Table:
        return self.tables()["selection_coverage"]

    def plot(self, k: int | None = None) -> Any:
        """Heatmap of coverage, selector by layer."""
        import plotly.graph_objects as go

        k = self.config.top_k[0] if k is None else k
        heat = go.Heatmap(z=self.coverage[k], zmin=0, zmax=1, colorbar={"title": "coverage"})
        title = f"mass on the {k} keys a layer selects"
        return new_figure(heat).update_layout(title=title, xaxis_title="layer", yaxis_title="selecting layer")

    def summary(self) -> dict[str, Any]:
        """Of the first k: mean coverage by a layer below, and the best partition with a quarter of the layers full."""
        k = self.config.top_k[0]
        c = self.coverage[k]
        layers = c.shape[0]
        found: dict[str, Any] = {"k": k, "n_queries": self.n_queries[k], "mean_key_share": float(self.share.mean())}
        if not np.isnan(c).any():
            above = np.triu(np.ones_like(c, dtype=bool), 1)
            found["mean_coverage_from_below"] = float(c[above].mean()) if layers > 1 else 1.0
            best = best_partition(c, max(1, round(layers / 4)))
            found["full_layers"] = [i for i, s in enumerate(best.selector) if s == i]
            found["partition_coverage"] = best.value
        return found


def best_partition(coverage: np.ndarray, n_full: int) -> Partition:
    """Choose `n_full` layers, the first among them, so that the others are covered best by the last chosen one below.

    Dynamic programming over (layers chosen, last one chosen): O(L²·n_full).

    Args:
        coverage: [selector, layer].

    Raises:
        ConfigError: n_full is not within 1 … L.
    """
    n = coverage.shape[0]
    if not 1 <= n_full <= n:
        raise ConfigError(f"n_full {n_full} must be within 1 … {n}, the number of layers")
    # run[s, e]: coverage of the layers s + 1 … e − 1, all following s.
    run = np.zeros((n, n + 1))
    for s in range(n):
        run[s, s + 2 :] = np.cumsum(coverage[s, s + 1 :])
    best = np.full((n_full + 1, n + 1), -np.inf)
    came = np.zeros((n_full + 1, n + 1), dtype=int)
    best[1, 0] = 0.0
    for chosen in range(2, n_full + 1):
        for s in range(1, n):
            options = best[chosen - 1, :s] + run[:s, s]
            came[chosen, s] = int(np.argmax(options))
            best[chosen, s] = options[came[chosen, s]]
    totals = best[n_full, :n] + run[:, n]
    last = int(np.argmax(totals))
    full = [last]
    for chosen in range(n_full, 1, -1):
        full.insert(0, int(came[chosen, full[0]]))
    selector = tuple(max(f for f in full if f <= layer) for layer in range(n))
    return Partition(selector, float((totals[last] + n_full) / n))


@torch.no_grad()
def selection_layers(
    model: AnyModel,
    data: TokenDataset | ImageDataset,
    config: SelectionConfig | None = None,
    track: Track = no_track,
) -> SelectionResult:
    """Coverage of every layer by every layer's keys, over a data set; weights are made a block of queries at a time.

    Example:
        >>> from attlas.analyses.attention import SelectionConfig, selection_layers
        >>> result = selection_layers(model, text, SelectionConfig(top_k=(4,)))
        >>> result.coverage[4].shape  # [selecting layer, layer]
        (4, 4)
        >>> result.share.shape  # [layer, head]
        (4, 6)
    """
    model = as_hooked(model)
    model.require_plain("selection layers", "sinks")
    config = config or SelectionConfig()
    cfg = model.cfg
    covered = {k: torch.zeros(cfg.n_layers, cfg.n_layers, dtype=torch.float64) for k in config.top_k}
    n_queries = dict.fromkeys(config.top_k, 0)
    share = torch.zeros(2, cfg.n_layers, cfg.n_heads, dtype=torch.float64)
    n_all = 0
    for batch in track(data.batches(config.batch_size), "selection layers"):
        layers = list(attended(model, batch))
        length = layers[0].q.shape[2]
        rows = max(1, _BLOCK_ELEMENTS // (cfg.n_layers * cfg.n_heads * length))
        for sequence in range(batch.shape[0]):
            for start in range(0, length, rows):
                block = slice(start, min(length, start + rows))
                found = [layer.weights(sequence, block) for layer in layers]
                maps, allowed = (torch.stack(parts) for parts in zip(*found, strict=True))  # [L, H, R, S], [L, R, S]
                n_keys = allowed.sum(-1)
                share += _share(maps, n_keys, config.mass)
                n_all += maps.shape[2]
                for k in config.top_k:
                    some = n_keys.amax(0) > k
                    if bool(some.any()):
                        covered[k] += _coverage(maps[:, :, some], allowed[:, some], k)
                        n_queries[k] += int(some.sum())
    means = {k: (c / n_queries[k] if n_queries[k] else c * np.nan).numpy() for k, c in covered.items()}
    return SelectionResult(means, n_queries, (share[0] / n_all).numpy(), (share[1] / n_all).numpy(), config)


def _coverage(maps: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Σ over queries of the head-averaged mass of each layer on each layer's top-k keys: [selector, layer], float64.

    A layer whose window holds fewer than k keys selects those alone.
    """
    mean = maps.mean(1)  # [L, R, S]; the sum over heads, up to a factor
    chosen = mean.masked_fill(~allowed, -1).topk(k, dim=-1).indices
    found = []
    for index, own in zip(chosen, allowed.gather(-1, chosen), strict=True):
        found.append((mean.gather(-1, index.expand_as(chosen)) * own).sum((-1, -2)))
    return torch.stack(found).double().cpu()


def _share(maps: Tensor, n_keys: Tensor, mass: float) -> Tensor:
    """Σ over queries of the least share, and number, of keys that hold `mass`: [2, L, H], float64; n_keys [L, R]."""
    n_keys = n_keys.unsqueeze(1)
    ordered = maps.sort(-1, descending=True).values.cumsum(-1)
    needed = 1 + (ordered < mass).sum(-1)
    needed = torch.minimum(needed, n_keys)
    return torch.stack([(needed / n_keys).double().sum(-1), needed.double().sum(-1)]).cpu()
