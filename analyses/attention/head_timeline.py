"""Heads over training: entropy and head scores at every checkpoint of a folder.

Two inputs a checkpoint: natural text (or images) for entropy and sinks; for language models also random tokens repeated
once, on which induction, previous-token and duplicate-token scores are read in the second half, where an earlier copy
exists (Olsson et al. 2022, arXiv 2209.11895). Beside every score stands its null (`birth_null`): a head is born at the first
checkpoint from which its score stays above it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from attlas.analyses.attention.birth_null import null_scores
from attlas.analyses.attention.config import EntropyConfig, TimelineConfig
from attlas.analyses.attention.head_entropy import entropy
from attlas.analyses.common.checkpoints import Arrays, Opening, Shape, over_checkpoints
from attlas.analyses.common.columns import CHECKPOINT, CHECKPOINT_STEP, HEAD, LAYER
from attlas.analyses.common.repeats import SCORES, repeat_scores, repeated_tokens
from attlas.data.checkpoints import Checkpoint
from attlas.data.figures import new_grid
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.text import TokenDataset
from attlas.data.workspace import Ref
from attlas.interp import HookedModel

_F = pa.float64()
TIMELINE = TableSchema(
    "timeline",
    "one head at one checkpoint",
    (
        CHECKPOINT_STEP,
        CHECKPOINT,
        LAYER,
        HEAD,
        column("entropy", _F, "nats", "mean over queries, on the data"),
        column("normalized", _F, "fraction", "mean of entropy / log(attendable positions), on the data"),
        column("lower_bound", _F, "nats", "mean of Theorem 3.1's bound with s = ‖u − mean(u)‖, on the data"),
        column("sink_mass", _F, "fraction", "mean weight on the first position, on the data"),
        column("max_weight", _F, "fraction", "mean of a query's largest weight, on the data"),
        column("previous_token", _F, "fraction", "mean weight on the position before; on repeated random tokens"),
        column("duplicate_token", _F, "fraction", "mean weight on the earlier copy; on repeated random tokens"),
        column(
            "induction", _F, "fraction", "mean weight on the token after the earlier copy; on repeated random tokens"
        ),
        *(
            column(
                f"{name}_null", _F, "fraction", f"what {name} must exceed: 5 % of heads by chance, or other distances"
            )
            for name in SCORES
        ),
        column("loss", _F, "nats", "mean next-token loss of the checkpoint on the data; NaN for vision models"),
        column("repeat_loss", _F, "nats", "mean loss on the second copy of the random tokens"),
    ),
)
SCHEMAS = (TIMELINE,)
_LOSSES = ("loss", "repeat_loss")


@dataclass(frozen=True)
class Birth:
    """A head whose score rose past its null between two checkpoints, and stayed above.

    Attributes:
        after: step of the checkpoint before; 0 when the first is above already.
        by: step of the first checkpoint from which the score stays above its null.
        score, null: at the last checkpoint, fraction.
    """

    layer: int
    head: int
    after: int
    by: int
    score: float
    null: float


@dataclass(frozen=True)
class TimelineResult(Result):
    """Columns [checkpoint, layer, head] by name, losses [checkpoint].

    Attributes:
        model: the last checkpoint.
    """

    kind: ClassVar[str] = "timeline"

    checkpoints: tuple[Checkpoint, ...]
    columns: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    model: Ref
    config: TimelineConfig

    def table(self) -> pa.Table:
        """Table timeline."""
        n, layers, heads = self.columns["entropy"].shape
        step, layer, head = np.meshgrid(np.arange(n), np.arange(layers), np.arange(heads), indexing="ij")
        data: dict[str, Any] = {name: values.ravel() for name, values in self.columns.items()}
        data |= {name: values[step.ravel()] for name, values in self.losses.items()}
        data["step"] = [self.checkpoints[i].step for i in step.ravel()]
        data["checkpoint"] = [self.checkpoints[i].name for i in step.ravel()]
        return TIMELINE.table(data | {"layer": layer.ravel(), "head": head.ravel()})

    def tables(self) -> dict[str, pa.Table]:
        return {"timeline": self.table()}

    def births(self, score: str = "induction") -> list[Birth]:
        """Heads whose score is above its null from some checkpoint to the last, the strongest at the end first."""
        values, null, steps = self.columns[score], self.columns[f"{score}_null"], [c.step for c in self.checkpoints]
        stays = np.logical_and.accumulate((values > null)[::-1])[::-1]
        found = []
        for layer, head in np.argwhere(stays[-1]):
            at = int(np.argmax(stays[:, layer, head]))
            last = float(values[-1, layer, head]), float(null[-1, layer, head])
            found.append(Birth(int(layer), int(head), steps[at - 1] if at else 0, steps[at], *last))
        return sorted(found, key=lambda birth: -birth.score)

    def plot(self, score: str = "induction", head: tuple[int, int] | None = None) -> Any:
        """One head's score and entropy over steps (by default the one whose score ends highest)."""
        import plotly.graph_objects as go

        if head is None:
            at = np.unravel_index(np.nanargmax(self.columns[score][-1]), self.columns[score].shape[1:])
            head = (int(at[0]), int(at[1]))
        steps = [c.step for c in self.checkpoints]
        figure = new_grid(specs=[[{"secondary_y": True}]])
        figure.add_trace(go.Scatter(x=steps, y=self.columns[score][:, *head], name=score.replace("_", " ")))
        if f"{score}_null" in self.columns:
            dotted = {"dash": "dot"}
            figure.add_trace(
                go.Scatter(x=steps, y=self.columns[f"{score}_null"][:, *head], name="its null", line=dotted)
            )
        for name in ("entropy", "lower_bound"):
            y = self.columns[name][:, *head]
            figure.add_trace(go.Scatter(x=steps, y=y, name=f"{name.replace('_', ' ')}, nats"), secondary_y=True)
        figure.update_layout(title=f"head {head[0]}.{head[1]} over training", xaxis_title="step")
        figure.update_yaxes(title_text="entropy, nats", secondary_y=True)
        return figure

    def summary(self) -> dict[str, Any]:
        """Headline numbers: the checkpoints, and the birth of the strongest induction and previous-token head."""
        found: dict[str, Any] = {"steps": [c.step for c in self.checkpoints]}
        found["mean_entropy_nats"] = self.columns["entropy"].mean((1, 2)).tolist()
        for score in ("induction", "previous_token"):
            births = self.births(score)
            if births:
                first = births[0]
                found[f"{score}_head"] = f"{first.layer}.{first.head}"
                found[f"{score}_birth"] = [first.after, first.by]
                found[f"{score}_score"] = first.score
                found[f"{score}_null"] = first.null
        return found

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        """The last checkpoint."""
        return self.model, None


def timeline(
    checkpoints: tuple[Checkpoint, ...],
    data: Callable[[HookedModel], TokenDataset | ImageDataset],
    config: TimelineConfig | None = None,
    track: Track = no_track,
    device: str = "auto",
    opening: Opening | None = None,
) -> TimelineResult:
    """Measure every checkpoint on the same data, one model in memory at a time.

    Args:
        checkpoints: from `find_checkpoints` or `find_revisions`.
        data: the first checkpoint's model → the text or images to use for all.
        opening: in place of `device`: dtype too, and the folder from which a measure that was stopped goes on.

    Raises:
        CheckpointError: a checkpoint's architecture differs from the first one's.

    Example:
        >>> from attlas.analyses.attention import TimelineConfig, timeline
        >>> quick = TimelineConfig(n_repeats=1, repeat_length=16, n_draws=2)
        >>> result = timeline(checkpoints, lambda model: text, quick, device="cpu")
        >>> len(result.tables()["timeline"]) == len(checkpoints) * model.cfg.n_layers * model.cfg.n_heads
        True
    """
    config = config or TimelineConfig()

    def told(shape: Shape) -> str:
        return f"{shape[0]}, {shape[1]} × {shape[2]} heads"

    rows, last = over_checkpoints(
        checkpoints,
        data,
        lambda model, dataset: _measure(model, dataset, config),
        lambda cfg: (cfg.family, cfg.n_layers, cfg.n_heads),
        told,
        dataclasses.replace(opening or Opening(device), settings=f"timeline {config}"),
        track,
    )
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    losses = {name: found.pop(name) for name in _LOSSES}
    return TimelineResult(checkpoints, found, losses, last, config)


@torch.no_grad()
def _measure(model: HookedModel, data: TokenDataset | ImageDataset, config: TimelineConfig) -> Arrays:
    """Columns [layer, head], and the losses as arrays of one number."""
    found = entropy(model, data, EntropyConfig(batch_size=config.batch_size)).columns
    row = {name: found[name] for name in ("entropy", "normalized", "lower_bound", "sink_mass", "max_weight")}
    losses = dict.fromkeys(_LOSSES, np.nan)
    if model.cfg.family == "vit":
        nothing = np.full_like(row["entropy"], np.nan)
        return row | {name + end: nothing for name in SCORES for end in ("", "_null")} | _arrays(losses)
    tokens = repeated_tokens(model, length=config.repeat_length, n=config.n_repeats, seed=config.seed)
    row |= repeat_scores(model, tokens)
    null = null_scores(model, tokens, config.n_draws, config.seed)
    row |= {f"{name}_null": values for name, values in null.items()}
    half = (tokens.shape[1] - 1) // 2
    if model.has_head:
        losses["repeat_loss"] = float(model.cross_entropy(tokens)[:, half:].mean())
    if model.has_head and isinstance(data, TokenDataset):
        parts = [model.cross_entropy(batch).mean(1) for batch in data.batches(config.batch_size)]
        losses["loss"] = float(torch.cat(parts).mean())
    return row | _arrays(losses)


def _arrays(losses: dict[str, float]) -> Arrays:
    return {name: np.array(value) for name, value in losses.items()}
