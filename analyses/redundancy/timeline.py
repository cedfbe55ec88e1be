"""Redundancy over training: the scores of every checkpoint of a folder, and how soon their ranking is the final one.

He et al. 2024 (arXiv 2406.15786, §5) find that redundancy of attention layers is there early and stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.common.checkpoints import Shape, each_model
from attlas.analyses.common.columns import CHECKPOINT, CHECKPOINT_STEP, LAYER, MODULE, MODULES, REDUNDANCY, interval
from attlas.analyses.common.losses import quality
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
SCHEMAS = (REDUNDANCY_TIMELINE,)


@dataclass(frozen=True)
class RedundancyTimelineResult(Result):
    """Scores of each checkpoint, all on the same data.

    Attributes:
        losses: mean loss of each checkpoint.
        model: the last checkpoint.
    """

    kind: ClassVar[str] = "redundancy_timeline"

    checkpoints: tuple[Checkpoint, ...]
    results: tuple[RedundancyResult, ...]
    losses: tuple[float, ...]
    model: Ref
    config: RedundancyConfig

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
                rows.append({"step": checkpoint.step, "checkpoint": checkpoint.folder.name, "loss": loss, **row})
        return REDUNDANCY_TIMELINE.table(rows)

    def tables(self) -> dict[str, pa.Table]:
        return {"redundancy_timeline": self.table()}

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
) -> RedundancyTimelineResult:
    """Score every checkpoint on the same data.

    Args:
        checkpoints: from `find_checkpoints`.
        data: the first checkpoint's model → the text or images to use for all.

    Raises:
        CheckpointError: a checkpoint's architecture differs from the first one's.

    Example:
        >>> from attlas.analyses.redundancy import redundancy_timeline
        >>> result = redundancy_timeline(checkpoints, lambda model: text, device="cpu")
        >>> len(result.tables()["redundancy_timeline"]) == len(checkpoints) * model.cfg.n_layers * 3
        True
    """
    config = config or RedundancyConfig()
    results, losses = [], []

    def told(shape: Shape) -> str:
        return f"{shape} (family, layers, width)"

    for model, dataset in each_model(
        checkpoints, data, lambda cfg: (cfg.family, cfg.n_layers, cfg.d_model), told, track, device
    ):
        results.append(redundancy(model, dataset, config))
        if isinstance(dataset, TokenDataset):
            measurable = model.has_head
        else:
            measurable = classifier_labels(model, dataset) is not None
        losses.append(quality(model, dataset, config.batch_size)[0] if measurable else float("nan"))
    return RedundancyTimelineResult(checkpoints, tuple(results), tuple(losses), model.ref, config)
