"""The part of `attlas prune` that makes one pruned model: run the pipeline, write, show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attlas.analyses.pruning.pipeline import Data, PruneResult, prune
from attlas.analyses.pruning.pipeline_config import PruneConfig
from attlas.analyses.pruning.scores import LossMeter
from attlas.cli.common import Output, done
from attlas.cli.prune.lm_eval import show_lm_eval
from attlas.cli.prune.side_effects import print_side_effects
from attlas.data.disk import other_place
from attlas.data.models_catalog import resolve_model
from attlas.data.workspace import Workspace
from attlas.errors import StorageError
from attlas.interp import HookedModel

if TYPE_CHECKING:
    from attlas.cli.prune.args import Args


def prune_config(args: Args) -> PruneConfig:
    """What the options ask for."""
    names = {field.name for field in dataclasses.fields(PruneConfig)}
    shared = {name: getattr(args, name) for name in names if hasattr(args, name)}
    curve = {name: getattr(args.curve, name) for name in ("head_score", "batch_size", "seed")}
    return PruneConfig(**(shared | curve))


def prune_one(
    model: HookedModel,
    calibration: Data,
    evaluation: Data,
    config: PruneConfig,
    args: Args,
    workspace: Workspace,
    out: Output,
) -> dict[str, Any]:
    """Prune, then write the checkpoint, look at side effects, save and show."""
    source = resolve_model(args.model).folder
    result = prune(model, evaluation, config, calibration, source=source, track=out.track)
    if result.lm_eval:
        show_lm_eval(result.lm_eval, "healed" if result.healing else "pruned", out)
    if args.out is not None:
        result = _export(result, args, out)
    if args.what_dies:
        told = print_side_effects(model, result.drop, result.evaluation, args, workspace, out)
        result = dataclasses.replace(result, side_effects=told)
    saved = result.save(workspace)
    _show(result, out)
    if result.written is not None:
        how = "trust_remote_code=True" if result.format == "compact" else "stock transformers"
        out.say(f"wrote {result.written} ({result.format}: opens with {how})")
    return done(saved, workspace, result.summary(), out)


def _export(result: PruneResult, args: Args, out: Output) -> PruneResult:
    """Write the checkpoint to --to, or to another disk where that has no room."""
    assert args.out is not None
    out.say("writing the checkpoint, and comparing it in a fresh process")
    try:
        return result.export(args.out, args.force)
    except StorageError as error:
        place = other_place(args.out)
        if place is None:
            raise
        result = result.export(place / args.out.absolute().name)
        assert result.written is not None
        out.kept_elsewhere(args.out, result.written, str(error))
        return result


def _show(result: PruneResult, out: Output) -> None:
    """The table of what was measured, and what is to be said about it."""
    facts, rows, causal = result.facts, result.rows, result.model.cfg.causal
    out.table(
        f"{result.model.name} without {', '.join(result.names)}",
        ["", "whole", "pruned", *(["healed"] if result.healing else [])],
        [
            ("loss, nats" if result.measure == LossMeter.LOSS else result.measure, *[row["loss"] for row in rows]),
            *([("accuracy", *[row["accuracy"] for row in rows])] if result.measure == LossMeter.LOSS else []),
            ("parameters", facts["parameters_before"], facts["parameters_after"]),
            *([("KV bytes a token", facts["kv_bytes_before"], facts["kv_bytes_after"])] if causal else []),
        ],
    )
    for line in [*_told(facts), *result.notes]:
        out.say(line)


def _told(facts: Mapping[str, Any]) -> list[str]:
    """On what the count was chosen, and on what, and how well, the result is known."""
    known = "no interval below 8"
    if facts["delta_low"] is not None:
        known = f"95 % {facts['delta_low']:.4g} to {facts['delta_high']:.4g}"
    chosen = [f"count chosen on {facts['count_chosen_on']}"] if "count_chosen_on" in facts else []
    return [*chosen, f"measured on {facts['measured_on']}: Δ {facts['delta']:.4g} ({known})"]
