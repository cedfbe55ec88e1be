"""One pruned model from start to end: choose what goes, build, heal, measure, and write it as a checkpoint and a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from attlas.analyses.pruning.budget import Budget, select
from attlas.analyses.pruning.card import notes, sizes
from attlas.analyses.pruning.checkpoint import export, stored_dtype
from attlas.analyses.pruning.curve import DROP_CURVE, drop_row
from attlas.analyses.pruning.healing import HEALING, HealResult, heal
from attlas.analyses.pruning.lm_eval.tasks import LMEvalTasks, compared, told
from attlas.analyses.pruning.orders import available, last_first, random_order, ranked
from attlas.analyses.pruning.pipeline_config import PruneConfig
from attlas.analyses.pruning.scores import LossMeter, Scores, iterative_order
from attlas.analyses.pruning.surgery import build, check_format, check_prunable, forward_logits, silenced
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.runs.record import Ref
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.drop import Drop, Unit, unit_name

Data = TokenDataset | ImageDataset
WHEN = {"before": 0, "after": -1}
SCHEMAS = (DROP_CURVE, HEALING)
# Settings that a run keeps.
RECORDED = (
    "drop", "target", "order", "n", "max_delta_ce", "format", "save_parameters", "save_kv", "save_time", "calibration",
    "calibration_tokens", "heal_steps", "heal_objective", "heal_lr", "lm_eval", "lm_eval_limit", "n_prompts",
)  # fmt: skip


@dataclass(frozen=True)
class PruneResult(Result):
    """One pruned model and what it cost.

    Attributes:
        model: the whole model.
        hf: the pruned one, healed where that was asked for, as a module of transformers.
        drop: what went.
        names: the same, in the order it went: attn.2, head.0.4.
        format: stock or compact, as it was built.
        rows: rows of the table drop_curve: whole, pruned, and healed where it was.
        measure: what `loss` of the rows is (see `LossMeter.kind`).
        healing: the training curve, or None.
        facts: what the model card tells.
        lm_eval: a row for each task and metric, before and after (see `compared`).
        calibration, evaluation: what chose and healed (None where nothing did), and what the rows were measured on.
        source: folder of the whole model, or None.
        written: folder of the exported checkpoint, or None.
        side_effects: run id and summary of `drop_side_effects`, where it was run beside, for the record.
    """

    kind: ClassVar[str] = "prune"

    config: PruneConfig
    model: HookedModel = field(repr=False)
    hf: Any = field(repr=False)
    drop: Drop
    names: tuple[str, ...]
    format: str
    rows: tuple[dict[str, Any], ...]
    measure: str
    healing: HealResult | None
    facts: Mapping[str, Any]
    lm_eval: tuple[dict[str, Any], ...]
    calibration: Data | None = field(repr=False)
    evaluation: Data = field(repr=False)
    source: Path | None = None
    written: Path | None = None
    side_effects: Mapping[str, Any] | None = None

    def tables(self) -> dict[str, pa.Table]:
        """drop_curve of two or three rows; healing where it was asked for."""
        healed = {} if self.healing is None else {"healing": self.healing.table()}
        return {"drop_curve": DROP_CURVE.table(list(self.rows))} | healed

    @property
    def notes(self) -> list[str]:
        """What became of the dropped parts."""
        return notes(self.model, self.hf, self.drop)

    def summary(self) -> dict[str, Any]:
        """What went, and every fact of the model card."""
        found = {"dropped": list(self.names), "format": self.format, "notes": self.notes, **self.facts}
        if self.lm_eval:
            found["lm_eval"] = list(self.lm_eval)
        if self.written is not None:
            found["out"] = str(self.written)
        if self.side_effects is not None:
            found["what_dies"] = dict(self.side_effects)
        return found

    def plot(self) -> Any:
        """Loss of the whole, the pruned and the healed model, with the 95 % interval of the difference to the whole."""
        names = ["whole", "pruned", "healed"][: len(self.rows)]
        up, down = [
            [0.0 if row[end] is None else abs(row[end] - row["delta"]) for row in self.rows] for end in ("high", "low")
        ]
        error = {"type": "data", "array": up, "arrayminus": down}
        figure = new_figure()
        figure.add_bar(x=names, y=[row["loss"] for row in self.rows], error_y=error)
        unit = "loss (nats)" if self.measure == LossMeter.LOSS else self.measure
        figure.update_layout(yaxis_title=unit, title=f"{self.model.name} without {', '.join(self.names)}")
        return figure

    def export(self, folder: str | Path, force: bool = False) -> PruneResult:
        """Write the checkpoint (see `checkpoint.export`); the same result, knowing where it lies.

        Raises:
            ConfigError, CheckpointError, StorageError: the folder is not free, or what was written is not what was measured.
        """
        more: dict[str, Any] = {"source": self.source, "facts": self.facts, "hf": self.hf}
        done = export(self.model, self.drop, Path(folder), format=self.config.format, force=force, **more)
        return dataclasses.replace(self, written=done.folder)

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return self.model.ref, self.evaluation.ref

    def _recorded_config(self) -> dict[str, Any]:
        config = self.config
        recorded = {name: getattr(config, name) for name in RECORDED}
        if isinstance(config.drop, Drop):
            recorded["drop"] = config.drop.parts()
        if self.calibration is not None and config.calibration is None:
            recorded["calibration"] = self.calibration.name
        if isinstance(self.calibration, TokenDataset) and config.calibration_tokens is None:
            recorded["calibration_tokens"] = self.calibration.tokens.numel()
        return recorded


def prune(
    model: AnyModel,
    data: Data,
    config: PruneConfig,
    calibration: Data | None = None,
    *,
    source: Path | None = None,
    track: Track = no_track,
) -> PruneResult:
    """Choose what goes (or take what is named), build the model without it, heal it, and measure what it cost.

    Args:
        model: the whole model; it is not changed.
        data: what the cost is measured on, in nats a token or an image.
        calibration: what scores are taken on and healing trains on; without it half of `data`, where one is needed.
        source: folder of the whole model; its dtype, tokenizer and licence are the checkpoint's.

    Raises:
        ConfigError, LayerRangeError: the model has not what is to go, or the budget cannot be met.
        UnsupportedModelError: the format cannot hold it.
        NonFiniteError: healing diverged.

    Example:
        >>> from attlas.analyses.pruning import PruneConfig, prune
        >>> result = prune(model, text, PruneConfig(drop=("attn:2",)))
        >>> result.names, [row["order"] for row in result.rows]
        (('attn.2',), ['dense', 'named'])
    """
    model = as_hooked(model)
    _check(model, data, config)
    if calibration is None and (config.target is not None or config.heal_steps):
        calibration, data = data.split(1 / 2, config.seed)
    tasks = LMEvalTasks(model, config.tasks) if config.tasks is not None else None
    before = (
        tasks.run(model.hf) if tasks is not None else {}
    )  # early: a missing data set is reported before the long work
    chosen, scores, choosing, evaluation = _choose(model, calibration, data, config, track)
    drop = Drop.of(chosen, model.cfg.n_heads, model.cfg.n_kv_heads) if config.target else config.named
    hf, written = build(model, drop, config.format)
    dtype = stored_dtype(source) or model.dtype
    meter = LossMeter(model, evaluation, config.batch_size, track)
    dense, pruned = meter.whole, meter.measure(lambda x: forward_logits(hf, x))
    names = [unit_name(unit, model.cfg) for unit in chosen] or drop.names()
    target, order = (config.target, config.order) if config.target else ("named", "named")
    rows = [drop_row("none", "dense", 0, [], dense, dense), drop_row(target, order, 0, names, pruned, dense)]
    healing = None
    if config.healing is not None:
        assert calibration is not None
        frozen = silenced(hf, drop.with_silent(model)) if written == "stock" else ()
        healing = heal(hf, model, calibration, evaluation, config.healing, frozen=frozen, track=track)
        hf.to(dtype).to(model.dtype)  # what is measured is what the checkpoint will hold
        rows.append(drop_row(target, "healed", 0, names, meter.measure(lambda x: forward_logits(hf, x)), dense))
    facts = _facts(rows, calibration, evaluation, meter.kind, config) | sizes(model, hf, dtype)
    facts |= _healing_facts(rows, calibration, config) | choosing | _score_facts(names, chosen, scores, config)
    judged = compared(before, tasks.run(hf)) if tasks is not None else []
    return PruneResult(
        config,
        model,
        hf,
        drop,
        tuple(names),
        written,
        tuple(rows),
        meter.kind,
        healing,
        facts | told(judged),
        tuple(judged),
        calibration,
        evaluation,
        source,
    )


def _check(model: HookedModel, data: Data, config: PruneConfig) -> None:
    """Refuse before any work what the model or the data cannot give."""
    model.require_text_head("loss that says what dropping costs")
    if config.target is not None:
        check_format(model, config.format, config.target)
    else:
        check_prunable(model, config.named, config.format)
    if not LossMeter.has_loss(model, data):
        needs = "healing" if config.heal_steps else f"target {config.target}"
        if config.heal_steps or config.target in ("head", "group"):
            raise ConfigError(f"{needs} needs a loss, and {model.name} has no head or the images no labels")


def _choose(
    model: HookedModel, calibration: Data | None, data: Data, config: PruneConfig, track: Track
) -> tuple[Sequence[Unit], dict[Unit, float], dict[str, Any], Data]:
    """(units that go, scores where they made the order, facts on the choice, what is left to measure on)"""
    budget = config.budget
    if budget is None or calibration is None:
        return [], {}, {}, data
    choosing = data
    if budget.max_delta_ce is not None:  # what chose the count is too kind a judge of it
        choosing, data = data.split(1 / 2, config.seed)
    order, scores = _order(model, calibration, budget, config, track)
    more: dict[str, Any] = {"format": config.format, "batch_size": config.batch_size, "track": track}
    picked = select(model, order, budget, choosing, **more)
    if budget.max_delta_ce is None:
        return picked.units, scores, {}, data
    kept = f"Δ loss {picked.saved:.4g} of at most {budget.max_delta_ce:.4g}"
    facts = {"count_chosen_on": f"{_part(choosing)}: {kept}", "delta_where_chosen": picked.saved}
    return picked.units, scores, facts, data


def _order(
    model: HookedModel, calibration: Data, budget: Budget, config: PruneConfig, track: Track
) -> tuple[Sequence[Unit], dict[Unit, float]]:
    """All units of the target, the first to drop first (angular: a run for each number); scores, where they made the order."""
    assert config.target is not None
    candidates = available(model, config.target)
    if budget.n is not None and budget.n > len(candidates):
        raise ConfigError(f"cannot drop {budget.n} of {len(candidates)} ({config.target}) in {model.name}")
    if config.order == "random":
        return random_order(candidates, config.seed), {}
    if config.order == "last":
        return last_first(candidates), {}
    scores = Scores(model, calibration, config.batch_size, config.head_score, track)
    if config.order == "angular":
        return scores.angular(), {}
    if config.order == "iterative":
        found = iterative_order(scores, config.target, budget.n or len(candidates) - 1)
        return list(found), found
    best = ranked(scores.of(config.target))
    return (best if config.order == "ranked" else best[::-1]), scores.of(config.target)


def _facts(
    rows: Sequence[Mapping[str, Any]], calibration: Data | None, evaluation: Data, kind: str, config: PruneConfig
) -> dict[str, Any]:
    """How it was chosen and what it cost, for the model card and the run."""
    by = f"{config.order} {config.target} on {calibration.name} ({calibration.hash})" if calibration else ""
    return {
        "chosen_by": by if config.target else "name",
        "measured_on": f"{_part(evaluation)}, {rows[0]['n_predictions']} predictions, {kind}",
        "loss_before": rows[0]["loss"],
        "loss_after": rows[-1]["loss"],
        "delta": rows[-1]["delta"],
        "delta_low": rows[-1]["low"],
        "delta_high": rows[-1]["high"],
        **({} if math.isnan(rows[0]["accuracy"]) else {f"accuracy_{k}": rows[i]["accuracy"] for k, i in WHEN.items()}),
    }


def _healing_facts(rows: Sequence[Mapping[str, Any]], calibration: Data | None, config: PruneConfig) -> dict[str, Any]:
    if not config.heal_steps or calibration is None:
        return {}
    told = f"{config.heal_steps} steps, {config.heal_objective}, on {calibration.name}"
    return {"loss_before_healing": rows[1]["loss"], "healing": told}


def _score_facts(
    names: Sequence[str], chosen: Sequence[Unit], scores: Mapping[Unit, float], config: PruneConfig
) -> dict[str, str]:
    """The scores of what went, where scores made the order."""
    if not scores:
        return {}
    kind = f"Δ loss, {config.head_score}" if config.target in ("head", "group") else "1 − cosine"
    if config.order == "iterative":
        kind += ", each without those before it"
    listed = [f"{name} {scores[unit]:.4g}" for name, unit in zip(names, chosen, strict=True)]
    return {f"scores ({kind})": ", ".join(listed)}


def _part(data: Data) -> str:
    """Which sequences or images: their source, hash and number."""
    return f"{data.name} ({data.hash}), {len(data)} {'images' if isinstance(data, ImageDataset) else 'sequences'}"
