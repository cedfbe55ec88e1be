"""What dropping costs: loss against the number of modules dropped, for rankings and controls (He et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.drop_curve_config import DropCurveConfig
from attlas.analyses.drop_measure import measure_drops
from attlas.analyses.drop_scores import Scores, iterative_order
from attlas.analyses.drop_selection import Drop, Unit, available, last_first, random_order, ranked, unit_name
from attlas.data.figures import new_figure
from attlas.data.images import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel

DROP_CURVE = TableSchema(
    "drop_curve",
    "one pruned model: a target, an order, a draw, a number dropped",
    (
        column("target", pa.string(), "", "attn, mlp, joint (attn and mlp ranked together), block, head, or group"),
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
        column("delta", pa.float64(), "nats", "loss less that of the dense model"),
        column(
            "accuracy", pa.float64(), "fraction", "how often the likeliest token or class is right; NaN of a backbone"
        ),
        column(
            "dropped",
            pa.list_(pa.string()),
            "",
            "what was dropped: module.layer or head.layer.head, first to last",
        ),
        column("n_predictions", pa.int64(), "", "tokens or images judged"),
    ),
)
SCHEMAS = (DROP_CURVE,)


@dataclass(frozen=True)
class DropCurveResult(Result):
    """Rows of the table drop_curve, the dense model first."""

    kind: ClassVar[str] = "drop_curve"

    rows: tuple[dict[str, Any], ...]
    config: DropCurveConfig

    def table(self) -> pa.Table:
        """Table drop_curve."""
        return DROP_CURVE.table(list(self.rows))

    def tables(self) -> dict[str, pa.Table]:
        return {"drop_curve": self.table()}

    def delta(self, target: str, order: str, n: int) -> list[float]:
        """Δ loss of one point, a value a draw."""
        return [r["delta"] for r in self.rows if (r["target"], r["order"], r["n_dropped"]) == (target, order, n)]

    def plot(self) -> Any:
        """Δ loss against modules dropped; random as the mean of its draws."""

        figure = new_figure()
        for target in self.config.targets:
            for order in self.config.orders:
                counts = [n for n in self.config.counts if self.delta(target, order, n)]
                y = [float(np.mean(self.delta(target, order, n))) for n in counts]
                figure.add_scatter(x=counts, y=y, name=f"{target}, {order}", mode="lines+markers")
        figure.update_layout(xaxis_title="modules dropped", yaxis_title="Δ loss (nats)", title="cost of dropping")
        return figure

    def summary(self) -> dict[str, Any]:
        """Dense loss, and Δ loss of the first order at the largest count, by target."""
        found: dict[str, Any] = {"dense_loss": self.rows[0]["loss"], "dense_accuracy": self.rows[0]["accuracy"]}
        for target in self.config.targets:
            points = [n for n in self.config.counts if self.delta(target, self.config.orders[0], n)]
            if points:
                values = self.delta(target, self.config.orders[0], max(points))
                found[f"delta_{target}_{max(points)}"] = float(np.mean(values))
        return found


def drop_curve(
    model: HookedModel,
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
    """
    config = config or DropCurveConfig()
    cfg = model.cfg
    orders = drop_orders(model, calibration, config, track)
    todo = [(*plan[:3], plan[3][:n]) for plan in orders for n in config.counts]
    drops = [Drop.of(chosen, cfg.n_heads, cfg.n_kv_heads) for *_, chosen in todo]
    dense, measured, _ = measure_drops(model, evaluation, drops, config.batch_size, track)
    rows = [drop_row("none", "dense", 0, [], dense, dense)]
    for (target, order, draw, chosen), found in zip(todo, measured, strict=True):
        rows.append(drop_row(target, order, draw, [unit_name(unit, cfg) for unit in chosen], found, dense))
    return DropCurveResult(tuple(rows), config)


def drop_orders(
    model: HookedModel, calibration: TokenDataset | ImageDataset, config: DropCurveConfig, track: Track = no_track
) -> list[tuple[str, str, int, Sequence[Unit]]]:
    """(target, order, draw, units from the first to drop) of everything the config asks for.

    Raises:
        ConfigError: a count is more than the target has.
    """
    found: list[tuple[str, str, int, Sequence[Unit]]] = []
    scores = Scores(model, calibration, config.batch_size, config.head_score, track)
    for target in config.targets:
        candidates = available(model, target)
        if max(config.counts) > len(candidates):
            raise ConfigError(f"cannot drop {max(config.counts)} of {len(candidates)} ({target}) in {model.name}")
        for order in config.orders:
            if order == "random":
                draws = range(config.n_random)
                found += [(target, order, i, random_order(candidates, config.seed + i)) for i in draws]
            elif order == "last":
                found.append((target, order, 0, last_first(candidates)))
            elif order == "angular":
                found.append((target, order, 0, scores.angular()))
            elif order == "iterative":
                found.append((target, order, 0, list(iterative_order(scores, target, max(config.counts)))))
            else:
                best = ranked(scores.of(target))
                found.append((target, order, 0, best if order == "ranked" else best[::-1]))
    return found


def drop_row(
    target: str,
    order: str,
    draw: int,
    names: list[str],
    measured: tuple[float, float, int],
    dense: tuple[float, float, int],
) -> dict[str, Any]:
    """A row of the table drop_curve; `measured` and `dense` are what `quality` gave."""
    loss, accuracy, count = measured
    row = {"target": target, "order": order, "draw": draw, "n_dropped": len(names), "loss": loss}
    return {
        **row,
        "delta": loss - dense[0],
        "accuracy": accuracy,
        "dropped": names,
        "n_predictions": count,
    }
