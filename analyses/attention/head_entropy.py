"""Attention entropy per head, with its lower bound (Zhai et al. 2023, arXiv 2303.06296), from queries and keys.

Nothing of size T × T is held: `attlas.kernels.attention_stats` reads q and k once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.attention.config import EntropyConfig
from attlas.analyses.common.columns import (
    DIAGONAL,
    ENTROPY,
    HEAD,
    LAYER,
    LOWER_BOUND,
    MAX_WEIGHT,
    MEAN_DISTANCE,
    N_QUERIES,
    NORMALIZED,
    PREVIOUS_TOKEN,
    SINK_MASS,
    interval,
)
from attlas.data.dataset import Dataset, masked_mean
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean
from attlas.errors import ConfigError
from attlas.interp import AnyModel, as_hooked, attended

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

HEAD_ENTROPY = TableSchema(
    "head_entropy",
    "one head",
    (
        LAYER,
        HEAD,
        ENTROPY,
        *interval("nats", "sequences"),
        NORMALIZED,
        *[column(f"q{int(100 * q):02d}", pa.float64(), "nats", f"{q:.0%} quantile over queries") for q in QUANTILES],
        LOWER_BOUND,
        MAX_WEIGHT,
        SINK_MASS,
        PREVIOUS_TOKEN,
        DIAGONAL,
        column("local_mass", pa.float64(), "fraction", "mean weight within the local window"),
        column("induction", pa.float64(), "fraction", "mean weight on tokens after earlier copies of the query (text)"),
        MEAN_DISTANCE,
        column(
            "learned_sink",
            pa.float64(),
            "fraction",
            "mean weight on the layer's learned sink (gpt-oss), which entropy counts and no key has; 0 without one",
        ),
        N_QUERIES,
    ),
)
SCHEMAS = (HEAD_ENTROPY,)
_MEANS = {
    "lower_bound": "lower_bound",
    "max_weight": "max_weight",
    "sink_mass": "sink_mass",
    "previous_token": "previous_token",
    "diagonal": "diagonal",
    "mean_distance": "mean_distance",
}


@dataclass(frozen=True)
class EntropyResult(Result):
    """Columns [layer, head] by name, as in the table head_entropy."""

    kind: ClassVar[str] = "entropy"

    columns: dict[str, np.ndarray]
    n_queries: int
    config: EntropyConfig

    def table(self) -> pa.Table:
        """Table head_entropy."""
        layers, heads = self.columns["entropy"].shape
        data: dict[str, Any] = {name: values.ravel() for name, values in self.columns.items()}
        data["layer"] = np.repeat(np.arange(layers), heads)
        data["head"] = np.tile(np.arange(heads), layers)
        data["n_queries"] = np.full(layers * heads, self.n_queries)
        return HEAD_ENTROPY.table(data)

    def tables(self) -> dict[str, pa.Table]:
        return {"head_entropy": self.table()}

    def plot(self, metric: str = "entropy") -> Any:
        """Heatmap layers × heads of one column."""
        import plotly.graph_objects as go

        figure = new_figure(go.Heatmap(z=self.columns[metric], colorbar={"title": metric}))
        figure.update_layout(xaxis_title="head", yaxis_title="layer", title=f"attention {metric.replace('_', ' ')}")
        figure.update_yaxes(autorange="reversed", dtick=1)
        return figure

    def summary(self) -> dict[str, Any]:
        """Headline numbers: mean entropy, the sharpest head, the strongest induction and previous-token heads."""
        found: dict[str, Any] = {
            "n_queries": self.n_queries,
            "mean_entropy_nats": float(np.nanmean(self.columns["entropy"])),
            "mean_normalized": float(np.nanmean(self.columns["normalized"])),
        }
        sharpest = np.unravel_index(np.nanargmin(self.columns["entropy"]), self.columns["entropy"].shape)
        found["sharpest_head"] = ".".join(str(int(i)) for i in sharpest)
        for name in ("induction", "previous_token"):
            values = self.columns[name]
            if not np.isnan(values).all():
                at = np.unravel_index(np.nanargmax(values), values.shape)
                found[f"{name}_head"] = ".".join(str(int(i)) for i in at)
                found[f"{name}_score"] = float(values[at])
        if self.columns["learned_sink"].any():
            found["mean_learned_sink"] = float(np.nanmean(self.columns["learned_sink"]))
        return found


@torch.no_grad()
def entropy(
    model: AnyModel,
    data: Dataset,
    config: EntropyConfig | None = None,
    track: Track = no_track,
) -> EntropyResult:
    """Entropy, bound and masses of every head over a data set.

    Queries and keys are taken after rotary embedding. For a vision model the queries are all tokens, and `induction`
    is NaN. Of padded text each document's mean counts once, whatever its length.

    Raises:
        ConfigError: a padded row is not longer than `skip_first`.

    Example:
        >>> from attlas.analyses.attention import entropy
        >>> result = entropy(model, text)
        >>> result.columns["entropy"].shape  # nats, [layer, head]
        (4, 6)
        >>> entropy(vit_model, images).columns["mean_distance"].shape
        (4, 6)
    """
    model = as_hooked(model)
    config = config or EntropyConfig()
    cfg = model.cfg
    skip = config.skip_first if cfg.causal else 0
    per_unit: dict[str, list[np.ndarray]] = {}  # name → [units, layer, head]
    pooled: list[list[Tensor]] = [[] for _ in range(cfg.n_layers)]
    n_queries = 0
    for batch in track(data.minibatches(config.batch_size), "attention entropy"):
        rows: dict[str, list[Tensor]] = {}
        keep = None if batch.mask is None else batch.mask[:, skip:]
        if keep is not None and not bool(keep.any(1).all()):
            raise ConfigError(f"'{data.name}' has a row without a query after the first {skip}; lower skip_first")
        for layer in attended(model, batch.inputs, absent_too=True):
            stats = layer.stats(window=config.window)
            ent = stats.entropy[:, :, skip:].cpu()
            pooled[layer.layer].append(ent.transpose(0, 1).flatten(1) if keep is None else ent.transpose(0, 1)[:, keep])
            rows.setdefault("entropy", []).append(masked_mean(ent, keep))
            normalized = stats.normalized_entropy[:, :, skip:].cpu()
            if keep is not None:
                normalized = normalized.masked_fill(~keep[:, None], torch.nan)
            rows.setdefault("normalized", []).append(normalized.nanmean(-1))
            rows.setdefault("local_mass", []).append(masked_mean(stats.window_mass[:, :, skip:], keep).cpu())
            for name, attribute in _MEANS.items():
                rows.setdefault(name, []).append(masked_mean(getattr(stats, attribute)[:, :, skip:], keep).cpu())
            taken = torch.zeros_like(stats.entropy) if stats.learned_sink is None else stats.learned_sink
            rows.setdefault("learned_sink", []).append(masked_mean(taken[:, :, skip:], keep).cpu())
            induction = masked_mean(stats.induction[:, :, skip:], keep).cpu() if stats.induction is not None else None
            rows.setdefault("induction", []).append(
                torch.full_like(ent[..., 0], torch.nan) if induction is None else induction
            )
        n_queries += ent.shape[0] * ent.shape[2] if keep is None else int(keep.sum())
        for name, values in rows.items():
            per_unit.setdefault(name, []).append(torch.stack(values, dim=1).numpy())
    stacked = {name: np.concatenate(values).astype(np.float64) for name, values in per_unit.items()}
    columns = {name: values.mean(0) for name, values in stacked.items()}
    _, columns["low"], columns["high"] = bootstrap_mean(stacked["entropy"], seed=config.seed)
    for level in QUANTILES:
        at = [np.quantile(torch.cat(parts, dim=1).numpy(), level, axis=1) for parts in pooled]
        columns[f"q{int(100 * level):02d}"] = np.stack(at)
    for head in model.absent_heads:  # no maps, so no numbers
        for values in columns.values():
            values[head] = np.nan
    return EntropyResult(columns, n_queries, config)
