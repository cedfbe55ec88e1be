"""Redundancy over training: the scores of every checkpoint of a folder, and how soon their ranking is the final one.

He et al. 2024 (arXiv 2406.15786, §5) find that redundancy of attention layers is there early and stays. Asked for, also what
every module alone and every head is worth at each checkpoint, by the measures of `modules` and `heads`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.common.checkpoints import Arrays, Opening, Shape, over_checkpoints
from attlas.analyses.common.columns import CHECKPOINT, CHECKPOINT_STEP, LAYER, MODULE, MODULES, REDUNDANCY, interval
from attlas.analyses.common.losses import quality
from attlas.analyses.redundancy.block_runs import BlockRuns
from attlas.analyses.redundancy.heads import HEAD_EFFECTS, HeadEffectsConfig, HeadEffectsResult, head_effects
from attlas.analyses.redundancy.modules import MODULE_EFFECTS, ModuleEffectsResult, module_effects
from attlas.analyses.redundancy.scores import RedundancyConfig, RedundancyResult, redundancy
from attlas.data.checkpoints import Checkpoint
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import spearman
from attlas.data.text import TokenDataset
from attlas.data.workspace import Ref
from attlas.interp import HookedModel
from attlas.interp.labels import classifier_labels

REDUNDANCY_TIMELINE = TableSchema(
    "redundancy_timeline",
    "one module of one layer at one checkpoint",
    (
        CHECKPOINT_STEP,
        CHECKPOINT,
        LAYER,
        MODULE,
        REDUNDANCY,
        *interval("1 − cosine", "sequences"),
        column(
            "rank", pa.int16(), "", "place among the checkpoint's layers of this module, from 0, most redundant first"
        ),
        column("loss", pa.float64(), "nats", "mean loss of the checkpoint on the data; NaN without a classifier"),
    ),
)
HEADS_TIMELINE = TableSchema(
    "head_effects_timeline",
    "one head, one ablation, at one checkpoint",
    (CHECKPOINT_STEP, CHECKPOINT, *HEAD_EFFECTS.columns),
    only="where heads were asked for",
)
MODULES_TIMELINE = TableSchema(
    "module_effects_timeline",
    "one module of one layer, dropped alone, at one checkpoint",
    (CHECKPOINT_STEP, CHECKPOINT, *MODULE_EFFECTS.columns),
    only="where modules alone were asked for",
)
SCHEMAS = (REDUNDANCY_TIMELINE, HEADS_TIMELINE, MODULES_TIMELINE)


@dataclass(frozen=True)
class RedundancyTimelineResult(Result):
    """Scores of each checkpoint, all on the same data.

    Attributes:
        losses: mean loss of each checkpoint.
        model: the last checkpoint.
        heads, modules: what each head and each module alone is worth, a checkpoint each; empty where not asked for.
    """

    kind: ClassVar[str] = "redundancy_timeline"

    checkpoints: tuple[Checkpoint, ...]
    results: tuple[RedundancyResult, ...]
    losses: tuple[float, ...]
    model: Ref
    config: RedundancyConfig
    heads: tuple[HeadEffectsResult, ...] = ()
    modules: tuple[ModuleEffectsResult, ...] = ()

    @property
    def scores(self) -> np.ndarray:
        """Float64 [checkpoint, layer, module]."""
        return np.stack([result.scores for result in self.results])

    def table(self) -> pa.Table:
        """Table redundancy_timeline."""
        rows = []
        for checkpoint, result, loss in zip(self.checkpoints, self.results, self.losses, strict=True):
            ranks = np.argsort(np.argsort(result.scores, axis=0, kind="stable"), axis=0, kind="stable")
            for row in result.table().to_pylist():
                row["rank"] = ranks[row["layer"], MODULES.index(row["module"])]
                del row["n_tokens"]
                rows.append({"step": checkpoint.step, "checkpoint": checkpoint.name, "loss": loss, **row})
        return REDUNDANCY_TIMELINE.table(rows)

    def tables(self) -> dict[str, pa.Table]:
        found = {"redundancy_timeline": self.table()}
        for schema, results in ((HEADS_TIMELINE, self.heads), (MODULES_TIMELINE, self.modules)):
            if results:
                found[schema.name] = schema.table(self._rows(results))
        return found

    def _rows(self, results: Sequence[HeadEffectsResult | ModuleEffectsResult]) -> list[dict[str, Any]]:
        """Every checkpoint's own table, under its step and name."""
        return [
            {"step": checkpoint.step, "checkpoint": checkpoint.name, **row}
            for checkpoint, result in zip(self.checkpoints, results, strict=True)
            for row in result.table().to_pylist()
        ]

    def agreement(self, module: str) -> list[float]:
        """Spearman's ρ over layers of each checkpoint's scores with the last one's."""
        scores = self.scores[:, :, MODULES.index(module)]
        return [float(spearman(row, scores[-1])) for row in scores]

    def plot(self, module: str = "attn") -> Any:
        """Scores over steps, one line a layer, with intervals."""
        slot, steps = MODULES.index(module), [c.step for c in self.checkpoints]
        figure = new_figure()
        for layer in range(self.scores.shape[1]):
            y = self.scores[:, layer, slot]
            high = [result.high[layer, slot] for result in self.results] - y
            low = y - [result.low[layer, slot] for result in self.results]
            error = {"type": "data", "array": high, "arrayminus": low}
            figure.add_scatter(x=steps, y=y, error_y=error, name=f"layer {layer}", mode="lines+markers")
        figure.update_layout(
            title=f"redundancy of {module} over training",
            xaxis_title="step",
            yaxis_title="1 − cosine (low = redundant)",
        )
        return figure

    def summary(self) -> dict[str, Any]:
        """Steps, means and the most redundant layer at each, and how far the ranking agrees with the last."""
        found: dict[str, Any] = {"steps": [c.step for c in self.checkpoints], "loss": list(self.losses)}
        for slot, module in enumerate(MODULES[:2]):
            found[f"mean_{module}"] = self.scores[:, :, slot].mean(1).tolist()
            found[f"most_redundant_{module}"] = self.scores[:, :, slot].argmin(1).tolist()
            found[f"rank_correlation_{module}"] = self.agreement(module)
        return found

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        """The last checkpoint."""
        return self.model, None


def redundancy_timeline(
    checkpoints: tuple[Checkpoint, ...],
    data: Callable[[HookedModel], TokenDataset | ImageDataset],
    config: RedundancyConfig | None = None,
    track: Track = no_track,
    device: str = "auto",
    opening: Opening | None = None,
    heads: HeadEffectsConfig | None = None,
    alone: bool = False,
) -> RedundancyTimelineResult:
    """Score every checkpoint on the same data, one model in memory at a time.

    Args:
        checkpoints: from `find_checkpoints` or `find_revisions`.
        data: the first checkpoint's model → the text or images to use for all.
        opening: in place of `device`: dtype too, and the folder from which a measure that was stopped goes on.
        heads: also measure what every head is worth, by these ablations.
        alone: also measure what every module alone is worth.

    Raises:
        CheckpointError: a checkpoint's architecture differs from the first one's.

    Example:
        >>> from attlas.analyses.redundancy import redundancy_timeline
        >>> result = redundancy_timeline(checkpoints, lambda model: text, device="cpu")
        >>> len(result.tables()["redundancy_timeline"]) == len(checkpoints) * model.cfg.n_layers * 3
        True
    """
    config = config or RedundancyConfig()

    def told(shape: Shape) -> str:
        return f"{shape} (family, layers, width)"

    def measure(model: HookedModel, dataset: TokenDataset | ImageDataset) -> Arrays:
        return _measure(model, dataset, config, heads, alone)

    found, last = over_checkpoints(
        checkpoints,
        data,
        measure,
        lambda cfg: (cfg.family, cfg.n_layers, cfg.d_model),
        told,
        dataclasses.replace(opening or Opening(device), settings=f"redundancy {config} {heads} {alone}"),
        track,
    )
    return RedundancyTimelineResult(
        checkpoints,
        tuple(_scores(arrays, config) for arrays in found),
        tuple(float(arrays["loss"]) for arrays in found),
        last,
        config,
        tuple(HeadEffectsResult(_under(arrays, "head/"), heads) for arrays in found) if heads else (),
        tuple(ModuleEffectsResult(arrays["alone"], config) for arrays in found) if alone else (),
    )


def _measure(
    model: HookedModel,
    data: TokenDataset | ImageDataset,
    config: RedundancyConfig,
    heads: HeadEffectsConfig | None,
    alone: bool,
) -> Arrays:
    """All that a checkpoint is asked for, as arrays by name."""
    scored = redundancy(model, data, config)
    found = {name: getattr(scored, name) for name in ("scores", "low", "high")}
    found |= {f"runs/{name}": getattr(scored.runs, name) for name in ("mean", "low", "high")}
    measurable = model.has_head if isinstance(data, TokenDataset) else classifier_labels(model, data) is not None
    loss = quality(model, data, config.batch_size)[0] if measurable else float("nan")
    found |= {"n_tokens": np.array(scored.n_tokens), "loss": np.array(loss)}
    if heads is not None:
        found |= {f"head/{name}": values for name, values in head_effects(model, data, heads).per_sequence.items()}
    return found | ({"alone": module_effects(model, data, config).per_sequence} if alone else {})


def _under(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _scores(arrays: Arrays, config: RedundancyConfig) -> RedundancyResult:
    runs = BlockRuns(**_under(arrays, "runs/"))
    return RedundancyResult(arrays["scores"], arrays["low"], arrays["high"], int(arrays["n_tokens"]), runs, config)
