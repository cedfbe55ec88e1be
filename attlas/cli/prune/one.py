"""The part of `attlas prune` that makes one pruned model: choose, build, heal, measure, write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attlas.analyses.pruning.budget import Budget, select
from attlas.analyses.pruning.card import notes, sizes
from attlas.analyses.pruning.checkpoint import Exported, export, stored_dtype
from attlas.analyses.pruning.curve import DROP_CURVE, drop_row
from attlas.analyses.pruning.healing import HealConfig, HealResult, heal
from attlas.analyses.pruning.lm_eval.tasks import LMEvalConfig
from attlas.analyses.pruning.orders import available, last_first, random_order, ranked
from attlas.analyses.pruning.scores import Judge, Scores, iterative_order
from attlas.analyses.pruning.surgery import build, forward_logits, silenced
from attlas.cli.common import Output
from attlas.cli.prune.lm_eval import LMEval, lm_eval_facts
from attlas.cli.prune.side_effects import tell_what_dies
from attlas.data.disk import other_place
from attlas.data.images.dataset import ImageDataset
from attlas.data.models_catalog import resolve_model
from attlas.data.text import TokenDataset
from attlas.data.workspace import Run, Workspace
from attlas.errors import ConfigError, StorageError
from attlas.interp import HookedModel
from attlas.interp.drop import Drop, Unit, unit_name

if TYPE_CHECKING:
    from attlas.cli.prune.args import Args

Data = TokenDataset | ImageDataset
WHEN = {"before": 0, "after": -1}


def prune_one(
    model: HookedModel,
    calibration: Data,
    evaluation: Data,
    named: Drop,
    budget: Budget | None,
    lm_eval: LMEvalConfig | None,
    args: Args,
    workspace: Workspace,
    out: Output,
) -> dict[str, Any]:
    """Choose what goes (or take what was named), then build, heal, measure, save and export."""
    chosen: list[Unit] = []
    scores: dict[Unit, float] = {}
    drop = named
    tasks = LMEval(model, lm_eval) if lm_eval is not None else None
    choosing = evaluation
    chosen_on: dict[str, Any] = {}
    if budget is not None and budget.max_delta_ce is not None:  # what chose the count is too kind a judge of it
        choosing, evaluation = evaluation.split(1 / 2, args.curve.seed)
    if budget is not None and args.target is not None:
        order, scores = _order(model, calibration, budget, args, out)
        picked = select(
            model, order, budget, choosing, format=args.format, batch_size=args.curve.batch_size, track=out.track
        )
        if budget.max_delta_ce is not None:
            chosen_on = {
                "count_chosen_on": f"{_part(choosing)}: Δ loss {picked.saved:.4g} of at most {budget.max_delta_ce:.4g}",
                "delta_where_chosen": picked.saved,
            }
        chosen, drop = list(picked.units), Drop.of(picked.units, model.cfg.n_heads, model.cfg.n_kv_heads)
    hf, written = build(model, drop, args.format)
    folder = resolve_model(args.model).folder
    dtype = stored_dtype(folder) or model.dtype
    judge = Judge(model, evaluation, args.curve.batch_size, out.track)
    dense, pruned = judge.whole, judge.measure(lambda x: forward_logits(hf, x))
    names = [unit_name(unit, model.cfg) for unit in chosen] or _names(drop)
    target, order_name = (args.target, args.order) if args.target else ("named", "named")
    rows = [
        drop_row("none", "dense", 0, [], dense, dense),
        drop_row(str(target), order_name, 0, names, pruned, dense),
    ]
    healing = None
    if args.heal_steps:
        config = HealConfig(args.heal_steps, args.heal_lr, objective=args.heal_objective, seed=args.curve.seed)
        frozen = silenced(hf, drop.with_silent(model)) if written == "stock" else ()
        healing = heal(hf, model, calibration, evaluation, config, frozen=frozen, track=out.track)
        hf.to(dtype).to(model.dtype)  # what is measured is what the checkpoint will hold
        healed = judge.measure(lambda x: forward_logits(hf, x))
        rows.append(drop_row(str(target), "healed", 0, names, healed, dense))
    facts = _facts(model, hf, dtype, rows, calibration, evaluation, judge.kind, args) | chosen_on
    if scores:
        kind = f"Δ loss, {args.curve.head_score}" if args.target in ("head", "group") else "1 − cosine"
        if args.order == "iterative":
            kind += ", each without those before it"
        listed = [f"{name} {scores[unit]:.4g}" for name, unit in zip(names, chosen, strict=True)]
        facts[f"scores ({kind})"] = ", ".join(listed)
    judged = tasks.after(hf, "healed" if healing else "pruned", out) if tasks is not None else []
    facts |= lm_eval_facts(judged)
    result: dict[str, Any] = {"dropped": names, "format": written, "notes": notes(model, hf, drop), **facts}
    if judged:
        result["lm_eval"] = judged
    if args.out is not None:
        out.say("writing the checkpoint, and comparing it in a fresh process")

        def write(to: Path, force: bool) -> Exported:
            return export(model, drop, to, format=args.format, force=force, source=folder, facts=facts, hf=hf)

        try:
            done = write(args.out, args.force)
        except StorageError as error:
            place = other_place(args.out)
            if place is None:
                raise
            done = write(place / args.out.absolute().name, False)
            out.kept_elsewhere(args.out, done.folder, str(error))
        result["out"] = str(done.folder)
    if args.what_dies:
        result["what_dies"] = tell_what_dies(model, drop, evaluation, args, workspace, out)
    saved = _save(model, evaluation, args, rows, healing, result, workspace)
    out.table(
        f"{model.name} without {', '.join(names)}",
        ["", "whole", "pruned", *(["healed"] if healing else [])],
        [
            ("loss, nats" if judge.kind == Judge.LOSS else judge.kind, *[row["loss"] for row in rows]),
            *([("accuracy", *[row["accuracy"] for row in rows])] if judge.kind == Judge.LOSS else []),
            ("parameters", facts["parameters_before"], facts["parameters_after"]),
            *([("KV bytes a token", facts["kv_bytes_before"], facts["kv_bytes_after"])] if model.cfg.causal else []),
        ],
    )
    for line in _told(facts):
        out.say(line)
    for note in result["notes"]:
        out.say(note)
    if args.out is not None:
        how = "trust_remote_code=True" if written == "compact" else "stock transformers"
        out.say(f"wrote {result['out']} ({written}: opens with {how})")
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **result}


def _order(
    model: HookedModel, calibration: Data, budget: Budget, args: Args, out: Output
) -> tuple[Sequence[Unit], dict[Unit, float]]:
    """All units of the target, the first to drop first (angular: a run for each number); scores, where they made the order."""
    assert args.target is not None
    candidates = available(model, args.target)
    if budget.n is not None and budget.n > len(candidates):
        raise ConfigError(f"cannot drop {budget.n} of {len(candidates)} ({args.target}) in {model.name}")
    if args.order == "random":
        return random_order(candidates, args.curve.seed), {}
    if args.order == "last":
        return last_first(candidates), {}
    scores = Scores(model, calibration, args.curve.batch_size, args.curve.head_score, out.track)
    if args.order == "angular":
        return scores.angular(), {}
    if args.order == "iterative":
        found = iterative_order(scores, args.target, budget.n or len(candidates) - 1)
        return list(found), found
    best = ranked(scores.of(args.target))
    return (best if args.order == "ranked" else best[::-1]), scores.of(args.target)


def _names(drop: Drop) -> list[str]:
    pairs = (("attn", drop.attn), ("mlp", drop.mlp), ("block", drop.blocks))
    return [f"{module}.{layer}" for module, layers in pairs for layer in layers] + [
        f"head.{layer}.{head}" for layer, head in drop.heads
    ]


def _facts(
    model: HookedModel,
    hf: Any,
    dtype: torch.dtype,
    rows: list[dict[str, Any]],
    calibration: Data,
    evaluation: Data,
    kind: str,
    args: Args,
) -> dict[str, Any]:
    """What the model card and the run record."""
    facts: dict[str, Any] = {
        "chosen_by": f"{args.order} {args.target} on {calibration.name} ({calibration.hash})"
        if args.target
        else "name",
        "measured_on": f"{_part(evaluation)}, {rows[0]['n_predictions']} predictions, {kind}",
        "loss_before": rows[0]["loss"],
        "loss_after": rows[-1]["loss"],
        "delta": rows[-1]["delta"],
        "delta_low": rows[-1]["low"],
        "delta_high": rows[-1]["high"],
        **({} if math.isnan(rows[0]["accuracy"]) else {f"accuracy_{k}": rows[i]["accuracy"] for k, i in WHEN.items()}),
        **sizes(model, hf, dtype),
    }
    if args.heal_steps:
        facts["loss_before_healing"] = rows[1]["loss"]
        facts["healing"] = f"{args.heal_steps} steps, {args.heal_objective}, on {calibration.name}"
    return facts


def _part(data: Data) -> str:
    """Which sequences or images: their source, hash and number."""
    return f"{data.name} ({data.hash}), {len(data)} {'images' if isinstance(data, ImageDataset) else 'sequences'}"


def _told(facts: dict[str, Any]) -> list[str]:
    """On what the count was chosen, and on what, and how well, the result is known."""
    known = "no interval below 8"
    if facts["delta_low"] is not None:
        known = f"95 % {facts['delta_low']:.4g} to {facts['delta_high']:.4g}"
    chosen = [f"count chosen on {facts['count_chosen_on']}"] if "count_chosen_on" in facts else []
    return [*chosen, f"measured on {facts['measured_on']}: Δ {facts['delta']:.4g} ({known})"]


def _save(
    model: HookedModel,
    evaluation: Data,
    args: Args,
    rows: list[dict[str, Any]],
    healing: HealResult | None,
    summary: dict[str, Any],
    workspace: Workspace,
) -> Run:
    """A run of kind "prune"."""
    config = {name: getattr(args, name) for name in ("drop", "target", "order", "n", "max_delta_ce", "format")}
    config |= {name: getattr(args, name) for name in ("save_parameters", "save_kv", "save_time", "calibration")}
    config |= {name: getattr(args, name) for name in ("calibration_tokens", "heal_steps", "heal_objective", "heal_lr")}
    config |= {name: getattr(args, name) for name in ("lm_eval", "lm_eval_limit", "n_prompts")}
    with workspace.begin("prune", model=model.ref, data=evaluation.ref, config=config, seed=args.curve.seed) as run:
        run.table("drop_curve", DROP_CURVE.table(rows))
        if healing is not None:
            run.table("healing", healing.table())
        run.summary = summary
    return run.record
