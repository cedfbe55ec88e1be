"""What a tracker keeps and hands on: rows in memory, a Parquet file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attlas.analyses.common.columns import HEAD, LOWER_BOUND, MAX_WEIGHT, NORMALIZED, SINK_MASS, STEP
from attlas.analyses.stability.layer import AttentionLayer
from attlas.analyses.stability.sums import QUANTILES
from attlas.data.disk import check_writable
from attlas.data.files import atomic_path
from attlas.data.schema import TableSchema, column
from attlas.errors import StorageError

log = logging.getLogger("attlas.tracker")
_FLOAT = pa.float64()
WEIGHT_BOUND = column("weight_bound", _FLOAT, "nats", "the same with the paper's s from ‖W_K·W_Qᵀ‖ and ‖X·Xᵀ‖")
SIGMA_QK = column("sigma_qk", _FLOAT, "", "this head's ‖W_K·W_Qᵀ‖₂ (rotary: ‖W_K‖₂·‖W_Q‖₂)")
_MEASURED = (
    column("entropy", _FLOAT, "nats", "mean over queries of −Σ a·log a; NaN where the layer was not seen"),
    NORMALIZED,
    *[column(f"q{int(100 * q):02d}", _FLOAT, "nats", f"{q:.0%} quantile over queries, to 0.008") for q in QUANTILES],
    LOWER_BOUND,
    WEIGHT_BOUND,
    MAX_WEIGHT,
    SINK_MASS,
    column("nonfinite", _FLOAT, "fraction", "queries whose statistics are NaN or infinite"),
    column("n_queries", _FLOAT, "queries", "queries measured, over all ranks"),
)
_NORMS = (
    SIGMA_QK,
    *[column(f"sigma_{n}", _FLOAT, "", f"largest singular value of the layer's W_{n.upper()}") for n in "qkvo"],
)
_LAYER = column("layer", pa.int16(), "", "attention layer, from 0")
TRACKER = TableSchema(
    "tracker",
    "one head at one check",
    (
        STEP,
        _LAYER,
        column("site", pa.string(), "", "name of the attention layer"),
        HEAD,
        *_MEASURED,
        *_NORMS,
        column("loss", _FLOAT, "", "what step(loss=…) was given; NaN without"),
    ),
)
TRACKER_ALERTS = TableSchema(
    "tracker_alerts",
    "one alert that began or ended",
    (
        column("kind", pa.string(), "", "collapse, uniform or nonfinite"),
        column("began", pa.bool_(), "", "whether it began here; else it ended"),
        _LAYER,
        HEAD,
        column("since", pa.int64(), "steps", "step of the first of the checks that led here"),
        column("step", pa.int64(), "steps", "step of this check"),
        column("value", _FLOAT, "fraction", "normalised entropy (nonfinite: share of queries)"),
        column("threshold", _FLOAT, "fraction", "the line it crossed"),
    ),
)
SCHEMAS = (TRACKER, TRACKER_ALERTS)


class TrackerLog:
    """Collects checks.

    Args:
        attention_layers: the layers.
        out: Parquet file, or None. It is replaced whole (a reader always sees a complete file), at most so often that
            writing takes 1 % of the time.
        loggers: objects with `add_scalar(tag, value, step)` (TensorBoard) or `log(dict, step=)` (Weights & Biases), or
            functions (dict, step).
    """

    def __init__(
        self, attention_layers: Sequence[AttentionLayer], out: str | Path | None, loggers: Sequence[Any]
    ) -> None:
        self.attention_layers = attention_layers
        self.out = None if out is None else Path(out)
        if self.out is not None:
            check_writable(self.out.absolute().parent)
        self.loggers = list(loggers)
        self._chunks: list[dict[str, Any]] = []
        self._next_write = 0.0
        self._written = 0

    def add(
        self, step: int, columns: dict[str, np.ndarray], norms: dict[int, dict[str, Any]], loss: float | None
    ) -> None:
        """One check: columns [layer, head], norms by layer."""
        shape = columns["entropy"].shape
        present = np.zeros(shape, dtype=bool)
        for layer, attention in enumerate(self.attention_layers):
            present[layer, : attention.n_heads] = True
        layers, heads = np.nonzero(present)
        chunk: dict[str, Any] = {
            "step": np.full(len(layers), step),
            "layer": layers,
            "head": heads,
            "site": np.array([self.attention_layers[int(i)].name for i in layers]),
            "loss": np.full(len(layers), np.nan if loss is None else loss),
        }
        chunk |= {f.name: columns[f.name][present] for f in _MEASURED}
        for field in _NORMS:
            values = np.full(shape, np.nan)
            for layer, found in norms.items():
                if found.get(field.name) is not None:
                    values[layer, : self.attention_layers[layer].n_heads] = found[field.name]
            chunk[field.name] = values[present]
        self._chunks.append(chunk)
        self._hand_on(step, chunk, loss)
        if self.out is not None and time.monotonic() >= self._next_write:
            self._write()

    def table(self) -> pa.Table:
        """Table tracker."""
        names = [f.name for f in TRACKER.columns]
        if not self._chunks:
            return TRACKER.table({name: [] for name in names})
        columns: dict[str, Any] = {name: np.concatenate([c[name] for c in self._chunks]) for name in names}
        return TRACKER.table(columns)

    def summary(self) -> dict[str, Any]:
        """Of the last check."""
        if not self._chunks:
            return {"checks": 0}
        last = self._chunks[-1]
        found: dict[str, Any] = {"checks": len(self._chunks), "last_step": int(last["step"][0])}
        if not np.isnan(last["entropy"]).all():
            at = int(np.nanargmin(last["entropy"]))
            found["mean_entropy_nats"] = float(np.nanmean(last["entropy"]))
            found["lowest_entropy_nats"] = float(last["entropy"][at])
            found["lowest_head"] = f"{last['layer'][at]}.{last['head'][at]}"
        return found

    def plot(self, metric: str = "entropy") -> Any:
        """One line a head over steps, coloured by layer."""
        import plotly.express as px

        frame = self.table().to_pandas()
        frame["head"] = frame["layer"].astype(str) + "." + frame["head"].astype(str)
        frame["layer"] = frame["layer"].astype(str)
        return px.line(frame, x="step", y=metric, color="layer", line_group="head", hover_name="head")

    def close(self) -> None:
        if self.out is not None and self._written < len(self._chunks):
            self._write()

    def _write(self) -> None:
        assert self.out is not None
        start = time.monotonic()
        try:
            with atomic_path(self.out) as temporary:
                pq.write_table(self.table(), temporary, compression="zstd", write_page_checksum=True)
            self._written = len(self._chunks)
        except StorageError as error:  # the user's training must not end for its log
            warnings.warn(f"{error}; the tracker's rows stay in memory", stacklevel=2)
        now = time.monotonic()
        self._next_write = now + 100 * (now - start)

    def _hand_on(self, step: int, chunk: dict[str, np.ndarray], loss: float | None) -> None:
        """Per layer: mean and least entropy, and σ_qk's largest, under attlas/…"""
        if not self.loggers:
            return
        values: dict[str, float] = {} if loss is None else {"attlas/loss": loss}
        for layer, attention in enumerate(self.attention_layers):
            of = chunk["layer"] == layer
            for name, reduce in (("entropy", np.nanmean), ("entropy", np.nanmin), ("sigma_qk", np.nanmax)):
                found = chunk[name][of]
                if not np.isnan(found).all():
                    values[f"attlas/{name}_{reduce.__name__[3:]}/{attention.name}"] = float(reduce(found))
        for logger in list(self.loggers):
            try:
                if hasattr(logger, "add_scalar"):
                    for tag, value in values.items():
                        logger.add_scalar(tag, value, step)
                elif hasattr(logger, "log"):
                    logger.log(values, step=step)
                else:
                    logger(values, step)
            except Exception as error:  # a lost connection must not end the training
                self.loggers.remove(logger)
                log.warning("EntropyTracker: %s failed and is left out from now on: %s", type(logger).__name__, error)
