"""What dropping costs: loss against the number of modules dropped, for rankings and controls (He et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from attlas.analyses.drop_selection import Drop, Unit, last_first, masked, random_order, ranked, units
from attlas.analyses.redundancy import RedundancyConfig, redundancy
from attlas.data.images import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.schema import TableSchema, column
from attlas.data.text import TokenDataset
from attlas.data.workspace import Ref, Run, Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel

DROP_CURVE = TableSchema(
    "drop_curve",
    "one pruned model: a target, an order, a draw, a number dropped",
    (
        column("target", pa.string(), "", "attn, mlp, joint (attn and mlp ranked together), or block"),
        column("order", pa.string(), "", "ranked, iterative, random, last or reversed"),
        column("draw", pa.int16(), "", "number of the random draw; 0 elsewhere"),
        column("n_dropped", pa.int16(), "modules", "modules dropped; 0 is the dense model"),
        column("loss", pa.float64(), "nats", "mean cross-entropy: next token, or class of the image"),
        column("delta", pa.float64(), "nats", "loss less that of the dense model"),
        column("accuracy", pa.float64(), "fraction", "how often the likeliest token or class is the right one"),
        column("dropped", pa.list_(pa.string()), "", "what was dropped, as module.layer"),
        column("n_predictions", pa.int64(), "", "tokens or images judged"),
    ),
)
SCHEMAS = (DROP_CURVE,)
ORDERS = ("ranked", "iterative", "random", "last", "reversed")


@dataclass(frozen=True)
class DropCurveConfig:
    """Which drops to measure.

    Attributes:
        targets: of attn, mlp, joint, block.
        counts: how many modules to drop, several.
        orders: of ranked (scores of the dense model), iterative (scored anew after each drop), random, last, reversed.
        n_random: draws of the random control.
        batch_size: sequences or images at a time.
        seed: of the random draws.
    """

    targets: tuple[str, ...] = ("attn", "mlp", "joint", "block")
    counts: tuple[int, ...] = (1, 2, 3)
    orders: tuple[str, ...] = ("ranked", "random", "last", "reversed")
    n_random: int = 5
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for order in self.orders:
            if order not in ORDERS:
                raise ConfigError(f"order '{order}' is unknown; choose {', '.join(ORDERS)}")
        if any(n < 1 for n in self.counts):
            raise ConfigError(f"counts {list(self.counts)} must be 1 or more")


@dataclass(frozen=True)
class DropCurveResult:
    """Rows of the table drop_curve, the dense model first."""

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
        import plotly.graph_objects as go

        figure = go.Figure()
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

    def save(self, workspace: Workspace, model: Ref, data: Ref) -> Run:
        """Write a run of kind "drop_curve"."""
        with workspace.begin("drop_curve", model=model, data=data, config=self.config, seed=self.config.seed) as run:
            run.table("drop_curve", self.table())
            run.summary = self.summary()
        return run.record


@torch.no_grad()
def quality(model: HookedModel, data: TokenDataset | ImageDataset, batch_size: int = 8) -> tuple[float, float, int]:
    """(mean cross-entropy in nats, accuracy, predictions) of next tokens or image classes.

    Raises:
        ConfigError: a vision model without classifier or images without labels.
    """
    loss = right = 0.0
    count = 0
    labels = getattr(data, "labels", None)
    if model.cfg.family == "vit" and (labels is None or not model.cfg.n_classes):
        raise ConfigError(f"{model.name} needs a classifier and labelled images to measure what dropping costs")
    for batch in data.batches(batch_size):
        logits = model(batch).float()
        if labels is not None:
            target = labels[count : count + len(batch)].to(logits.device)
        else:
            target = batch[:, 1:].flatten().to(logits.device)
            logits = logits[:, :-1].flatten(0, 1)
        loss += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
        right += (logits.argmax(-1) == target).sum().item()
        count += len(target)
    return loss / count, right / count, count


def score_units(
    model: HookedModel, data: TokenDataset | ImageDataset, target: str, batch_size: int
) -> dict[Unit, float]:
    """Redundancy scores of a target's (module, layer) pairs."""
    result = redundancy(model, data, RedundancyConfig(batch_size=batch_size, n_bootstrap=1))
    modules = ("attn", "mlp") if target == "joint" else (target,)
    return {(module, layer): score for layer, module, score in result.ranking(modules)}


def iterative_order(
    model: HookedModel, data: TokenDataset | ImageDataset, target: str, n: int, batch_size: int
) -> list[Unit]:
    """Drop the most redundant, score what is left, and so on (n scoring passes)."""
    chosen: list[Unit] = []
    for _ in range(n):
        with masked(model, Drop.of(chosen)):
            scores = score_units(model, data, target, batch_size)
        chosen.append(next(unit for unit in ranked(scores) if unit not in chosen))
    return chosen


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
    dense = quality(model, evaluation, config.batch_size)

    def row(
        target: str, order: str, draw: int, chosen: list[Unit], measured: tuple[float, float, int]
    ) -> dict[str, Any]:
        return {
            "target": target,
            "order": order,
            "draw": draw,
            "n_dropped": len(chosen),
            "loss": measured[0],
            "delta": measured[0] - dense[0],
            "accuracy": measured[1],
            "dropped": [f"{module}.{layer}" for module, layer in chosen],
            "n_predictions": measured[2],
        }

    plans: list[tuple[str, str, int, list[Unit]]] = []
    for target in config.targets:
        candidates = units(target, model.cfg.n_layers)
        if max(config.counts) > len(candidates):
            raise ConfigError(f"cannot drop {max(config.counts)} of {len(candidates)} ({target}) in {model.name}")
        best = ranked(score_units(model, calibration, target, config.batch_size))
        for order in config.orders:
            for draw in range(config.n_random if order == "random" else 1):
                plans.append((target, order, draw, _order(order, draw, best, candidates, model, calibration, config)))
    rows = [row("none", "dense", 0, [], dense)]
    todo = [(*plan[:3], plan[3][:n]) for plan in plans for n in config.counts]
    for target, order, draw, chosen in track(todo, "drop curves"):
        with masked(model, Drop.of(chosen)):
            rows.append(row(target, order, draw, chosen, quality(model, evaluation, config.batch_size)))
    return DropCurveResult(tuple(rows), config)


def _order(
    order: str,
    draw: int,
    best: list[Unit],
    candidates: list[Unit],
    model: HookedModel,
    calibration: TokenDataset | ImageDataset,
    config: DropCurveConfig,
) -> list[Unit]:
    if order == "ranked":
        return best
    if order == "reversed":
        return best[::-1]
    if order == "last":
        return last_first(candidates)
    if order == "random":
        return random_order(candidates, config.seed + draw)
    target = "joint" if len({module for module, _ in candidates}) > 1 else candidates[0][0]
    return iterative_order(model, calibration, target, max(config.counts), config.batch_size)
