"""What dropping costs: loss against the number of modules dropped, for rankings and controls (He et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.common.columns import TARGET, upper
from attlas.analyses.common.losses import Losses
from attlas.analyses.pruning.control import DROP_CONTROL, control_row
from attlas.analyses.pruning.curve_config import DropCurveConfig
from attlas.analyses.pruning.measure import measure_drops
from attlas.analyses.pruning.orders import available, last_first, random_sets, ranked
from attlas.analyses.pruning.scores import Scores, iterative_order
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import MIN_UNITS, bootstrap_mean, count_mean
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.drop import Drop, Unit, unit_name

DROP_CURVE = TableSchema(
    "drop_curve",
    "one pruned model: a target, an order, a draw, a number dropped",
    (
        TARGET,
        column(
            "order",
            pa.string(),
            "",
            "ranked, iterative, random, last, reversed; of blocks angular (a run for each n)",
        ),
        column("draw", pa.int16(), "", "number of the random draw; 0 elsewhere"),
        column("n_dropped", pa.int16(), "modules", "modules dropped; 0 is the dense model"),
        column(
            "loss",
            pa.float64(),
            "nats",
            "mean cross-entropy: next token, or class of the image; of a backbone 1 − cosine to the dense features",
        ),
        column("delta", pa.float64(), "nats", "loss less that of the dense model on the same sequences or images"),
        column("low", pa.float64(), "nats", "95 % interval of delta over sequences or images, paired; null below 8"),
        upper("nats"),
        column(
            "accuracy", pa.float64(), "fraction", "how often the likeliest token or class is right; NaN of a backbone"
        ),
        column("accuracy_change", pa.float64(), "fraction", "accuracy less that of the dense model"),
        column("accuracy_low", pa.float64(), "fraction", "95 % interval of accuracy_change, paired; null below 8"),
        column("accuracy_high", pa.float64(), "fraction", "its upper end"),
        column(
            "dropped",
            pa.list_(pa.string()),
            "",
            "what was dropped: module.layer or head.layer.head, first to last",
        ),
        column("n_predictions", pa.int64(), "", "tokens or images measured"),
        column("n_sequences", pa.int64(), "", "sequences or images measured; random draws have a part of them"),
    ),
)
SCHEMAS = (DROP_CURVE, DROP_CONTROL)


@dataclass(frozen=True)
class DropCurveResult(Result):
    """Rows of the table drop_curve, the dense model first, and of drop_control."""

    kind: ClassVar[str] = "drop_curve"

    rows: tuple[dict[str, Any], ...]
    control: tuple[dict[str, Any], ...]
    config: DropCurveConfig

    def table(self) -> pa.Table:
        """Table drop_curve."""
        return DROP_CURVE.table(list(self.rows))

    def tables(self) -> dict[str, pa.Table]:
        """Table drop_curve, and drop_control where there are random draws."""
        return {"drop_curve": self.table()} | (
            {"drop_control": DROP_CONTROL.table(list(self.control))} if self.control else {}
        )

    def delta(self, target: str, order: str, n: int) -> list[float]:
        """Δ loss of one point, a value a draw."""
        return [r["delta"] for r in self.rows if (r["target"], r["order"], r["n_dropped"]) == (target, order, n)]

    def plot(self) -> Any:
        """Δ loss against modules dropped; random as the median of its draws, with their range; intervals are 95 %."""
        figure = new_figure()
        for target in self.config.targets:
            for order in self.config.orders:
                counts = [n for n in self.config.counts if self.delta(target, order, n)]
                y, below, above = zip(*(self.point(target, order, n) for n in counts), strict=True)
                error = {"type": "data", "array": np.subtract(above, y), "arrayminus": np.subtract(y, below)}
                figure.add_scatter(x=counts, y=y, error_y=error, name=f"{target}, {order}", mode="lines+markers")
        figure.update_layout(xaxis_title="modules dropped", yaxis_title="Δ loss (nats)", title="cost of dropping")
        return figure

    def point(self, target: str, order: str, n: int) -> tuple[float, float, float]:
        """Δ loss and the ends of its interval; of random draws the median, the least and the most.

        NaN where nothing was measured: no set is left beside the ranking's.
        """
        draws = self.delta(target, order, n)
        if not draws:
            return (float("nan"),) * 3
        if order == "random":
            return float(np.median(draws)), min(draws), max(draws)
        row = next(r for r in self.rows if (r["target"], r["order"], r["n_dropped"]) == (target, order, n))
        return row["delta"], *(row["delta"] if row[end] is None else row[end] for end in ("low", "high"))

    def summary(self) -> dict[str, Any]:
        """Dense loss, and Δ loss of the first order at the largest count, by target."""
        found: dict[str, Any] = {"dense_loss": self.rows[0]["loss"], "dense_accuracy": self.rows[0]["accuracy"]}
        for target in self.config.targets:
            points = [n for n in self.config.counts if self.delta(target, self.config.orders[0], n)]
            if points:
                values = self.delta(target, self.config.orders[0], max(points))
                found[f"delta_{target}_{max(points)}"] = float(np.median(values))
        return found


def drop_curve(
    model: AnyModel,
    calibration: TokenDataset | ImageDataset,
    evaluation: TokenDataset | ImageDataset,
    config: DropCurveConfig | None = None,
    track: Track = no_track,
) -> DropCurveResult:
    """Loss of the model with modules dropped, for every target, order and count.

    Args:
        calibration: what the scores are taken on.
        evaluation: what the loss is taken on.

    Raises:
        ConfigError: a count is more than the target has.

    Example:
        >>> from attlas.analyses.pruning import DropCurveConfig, drop_curve
        >>> config = DropCurveConfig(targets=("attn",), counts=(1, 2), orders=("ranked",))
        >>> result = drop_curve(model, text, text, config)
        >>> [(row["order"], row["n_dropped"]) for row in result.rows]
        [('dense', 0), ('ranked', 1), ('ranked', 2)]
    """
    model = as_hooked(model)
    config = config or DropCurveConfig()
    cfg, n = model.cfg, len(evaluation)
    few = min(n, max(MIN_UNITS, math.ceil(n * config.random_share)))
    plans, possible = drop_plans(model, calibration, config, track)
    drops = [Drop.of(plan.units, cfg.n_heads, cfg.n_kv_heads) for plan in plans]
    n_first = [few if plan.order == "random" else n for plan in plans]
    dense, measured, _ = measure_drops(model, evaluation, drops, config.batch_size, track, n_first)
    rows = [drop_row("none", "dense", 0, [], dense, dense)]
    draws: dict[tuple[str, int], list[Losses]] = {}
    for plan, found in zip(plans, measured, strict=True):
        rows.append(drop_row(plan.target, plan.order, plan.draw, [unit_name(u, cfg) for u in plan.units], found, dense))
        if plan.order == "random":
            draws.setdefault((plan.target, len(plan.units)), []).append(found)
    control = [
        control_row(plan.target, plan.order, key[1], found, draws[key], dense, possible[key])
        for plan, found in zip(plans, measured, strict=True)
        for key in [(plan.target, len(plan.units))]
        if plan.order != "random" and key in draws
    ]
    return DropCurveResult(tuple(rows), tuple(control), config)


@dataclass(frozen=True)
class Plan:
    """One pruned model to measure: the units that go, of a target, in an order, and the number of the random draw."""

    target: str
    order: str
    draw: int
    units: tuple[Unit, ...]


def drop_plans(
    model: HookedModel, calibration: TokenDataset | ImageDataset, config: DropCurveConfig, track: Track = no_track
) -> tuple[list[Plan], dict[tuple[str, int], int]]:
    """Everything the config asks for; and, of (target, count), how many sets random draws can be.

    Raises:
        ConfigError: a count is more than the target has.
    """
    plans: list[Plan] = []
    possible: dict[tuple[str, int], int] = {}
    scores = Scores(model, calibration, config.batch_size, config.head_score, track)
    for target in config.targets:
        candidates = available(model, target)
        if max(config.counts) > len(candidates):
            raise ConfigError(f"cannot drop {max(config.counts)} of {len(candidates)} ({target}) in {model.name}")
        orders = {name: _order(name, candidates, scores, target, config) for name in config.orders if name != "random"}
        plans += [Plan(target, name, 0, tuple(order[:n])) for name, order in orders.items() for n in config.counts]
        for n in config.counts if "random" in config.orders else ():
            taken = [orders[name][:n] for name in ("ranked", "iterative") if name in orders]
            sets, possible[target, n] = random_sets(candidates, n, config.n_random, config.seed, taken)
            plans += [Plan(target, "random", i, tuple(units)) for i, units in enumerate(sets)]
    return plans, possible


def _order(name: str, candidates: list[Unit], scores: Scores, target: str, config: DropCurveConfig) -> Sequence[Unit]:
    if name == "last":
        return last_first(candidates)
    if name == "angular":
        return scores.angular()
    if name == "iterative":
        return list(iterative_order(scores, target, max(config.counts)))
    best = ranked(scores.of(target))
    return best if name == "ranked" else best[::-1]


def drop_row(target: str, order: str, draw: int, names: list[str], measured: Losses, dense: Losses) -> dict[str, Any]:
    """A row of the table drop_curve; of `dense`, the sequences or images that `measured` has count."""
    base = dense.first(len(measured.loss))
    loss, accuracy, count = measured.total
    row = {"target": target, "order": order, "draw": draw, "n_dropped": len(names), "loss": loss}
    row |= dict(zip(("delta", "low", "high"), paired(measured.loss - base.loss), strict=True))
    row |= {"accuracy": accuracy, "accuracy_change": float("nan"), "accuracy_low": None, "accuracy_high": None}
    if not math.isnan(accuracy):
        answers = isinstance(measured.n_predictions, int) and measured.n_predictions == 1
        change = paired(measured.right - base.right, count_mean if answers else bootstrap_mean)
        row |= dict(zip(("accuracy_change", "accuracy_low", "accuracy_high"), change, strict=True))
    if order == "dense":  # nothing is compared
        row |= dict.fromkeys(("low", "high", "accuracy_low", "accuracy_high"))
    return {**row, "dropped": names, "n_predictions": count, "n_sequences": len(measured.loss)}


def paired(change: np.ndarray, interval: Any = bootstrap_mean) -> tuple[float, float | None, float | None]:
    """Mean change and its 95 % interval over sequences or images; None below MIN_UNITS."""
    mean, low, high = (
        float(x) for x in (interval(change, differences=True) if interval is count_mean else interval(change))
    )
    return (mean, low, high) if math.isfinite(low) else (mean, None, None)
