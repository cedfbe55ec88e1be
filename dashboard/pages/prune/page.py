"""Prune: what could go, what dropping costs beside controls, pruned models, and a slider that predicts and measures."""

from __future__ import annotations

import math
from typing import Any

from attlas.dashboard.jobs import Job
from attlas.dashboard.page import Data, Page, Params, integer
from attlas.dashboard.pages.prune.view import view
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.data.workspace import Run

KINDS = ("redundancy", "drop_curve", "prune", "module_effects", "head_effects")
TARGETS = ("attn", "mlp", "joint", "block", "head")
VALUES = ("delta", "accuracy")
STATES = ("dead", "weaker", "stronger", "same", "absent", "rare")
SECONDS = 240.0
N_FEATURES = 200


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Scores, curves, pruned models and the slider of one model."""
    names = list(dict.fromkeys(run.model.name for kind in KINDS for run in reader.runs(kind)))
    newest = max((run for kind in KINDS for run in reader.runs(kind)), key=lambda run: run.created, default=None)
    model = params.get("model") or (newest.model.name if newest else None)
    if model is None or model not in names:
        return {"model": model, "found": False, "live": False, "job": None}
    curve = reader.pick("drop_curve", params.get("run"), model)
    scores, scored_by = _scores(reader, model)
    base: Data = {
        "model": model,
        "found": True,
        "scores": scores,
        "scored_by": scored_by,
        "curve_runs": [{"id": r.id, "created": r.created} for r in reader.runs("drop_curve", model)],
        "curve_run": curve.id if curve else None,
        "curve": reader.rows(curve, "drop_curve", ("target", "order", "draw", "n_dropped")),
        "control": reader.rows(curve, "drop_control", ("target", "order", "n_dropped")),
        "value": params.get("value") if params.get("value") in VALUES else "delta",
        "show": params.get("show") if params.get("show") in TARGETS else "all",
        "over_training": reader.rows(
            reader.pick("redundancy_timeline", None, model), "redundancy_timeline", ("step", "layer", "module")
        ),
    }
    base |= _pruned(reader, params, model)
    what_if, job = _what_if(reader, params, model, scores, base["curve"])
    if what_if is not None:
        alone = reader.pick("head_effects" if what_if["target"] == "head" else "module_effects", None, model)
        what_if["predicted_on"] = {"sum_alone": _measured_on(alone), "on_curve": _measured_on(curve)}
    describe = job.describe() if job else None
    return base | {"what_if": what_if, "job": describe, "live": job.poll() if job else False}


# -- scores ------------------------------------------------------------------------------------------------------------


def _scores(reader: WorkspaceReader, model: str) -> tuple[list[Row], dict[str, str]]:
    """(rows with target, unit, score, interval and the measured cost alone where known; target → the run it is from)."""
    alone = _alone(reader, model)
    rows, runs = [], {}
    scored = reader.pick("redundancy", None, model)
    for row in reader.rows(scored, "redundancy", ("layer", "module")):
        name = f"{row['module']}.{row['layer']}"
        runs[row["module"]] = scored.id if scored else ""
        rows.append(
            {
                "target": row["module"],
                "unit": name,
                **{k: row.get(k) for k in ("layer", "score", "low", "high")},
                "alone": alone.get(name),
            }
        )
    heads = reader.pick("head_effects", None, model)
    for row in reader.rows(heads, "head_effects", ("layer", "head"), ablation="zero"):
        name = f"head.{row['layer']}.{row['head']}"
        runs["head"] = heads.id if heads else ""
        rows.append(
            {
                "target": "head",
                "unit": name,
                "layer": row["layer"],
                "score": row["delta"],
                "low": row.get("low"),
                "high": row.get("high"),
                "alone": row["delta"],
            }
        )
    return rows, runs


def _alone(reader: WorkspaceReader, model: str) -> dict[str, float]:
    """Unit → Δ loss when it alone is dropped."""
    rows = reader.rows(reader.pick("module_effects", None, model), "module_effects")
    return {f"{row['module']}.{row['layer']}": row["delta"] for row in rows}


def ranking(scores: list[Row], target: str) -> list[Row]:
    """Units of a target, the most redundant first (joint: attention and MLPs together; ties to the later layer)."""
    wanted = ("attn", "mlp") if target == "joint" else (target,)
    there = [row for row in scores if row["target"] in wanted and row["score"] is not None]
    return sorted(there, key=lambda row: (row["score"], -row["layer"]))


# -- what if -----------------------------------------------------------------------------------------------------------


def _what_if(
    reader: WorkspaceReader, params: Params, model: str, scores: list[Row], curve: list[Row]
) -> tuple[dict[str, Any] | None, Job | None]:
    """The slider: how many of a target go, what that should cost, and, when asked, what it does cost."""
    targets = [t for t in TARGETS if ranking(scores, t)]
    if not targets:
        return None, None
    target = params.get("target") if params.get("target") in targets else targets[0]
    order = ranking(scores, str(target))
    most = len(order) - 1 if target in ("attn", "block") else len(order)
    asked = integer(params, "n")
    n = max(0, min(1 if asked is None else asked, most))
    runs = _runs(reader, model) if target == "block" else {}
    by = "angular" if runs and params.get("order") == "angular" else "ranked"
    gone = [row for row in order if row["layer"] in runs.get(n, ())] if by == "angular" else order[:n]
    gone.sort(key=lambda row: row["layer"] if by == "angular" else 0)
    units = [row["unit"] for row in gone]
    alone = [row["alone"] for row in gone]
    found: dict[str, Any] = {
        "targets": targets,
        "target": target,
        "n": n,
        "n_max": most,
        "units": units,
        "sum_alone": sum(alone) if all(value is not None for value in alone) else None,
        "on_curve": on_curve(curve, str(target), n, by),
        "orders": ["ranked", "angular"] if runs else ["ranked"],
        "order": by,
        "measure": params.get("measure") == "1",
        "measured": None,
    }
    if not (found["measure"] and n):
        return found, None
    near = bracket(curve, str(target), n, by)
    around = [(k, at) for k, at in points(curve, str(target), by).items() if k in near]
    job = _measure_job(reader, model, (str(target), by), units, [(k, at["dropped"]) for k, at in around])
    if job.result:  # predicted and measured on the same sequences
        found |= {"sum_alone": job.result["sum_alone"], "on_curve": on_curve(job.result["curve"], str(target), n, by)}
    return found | {"measured": job.result}, job


def _runs(reader: WorkspaceReader, model: str) -> dict[int, range]:
    """Number of blocks → the layers of the run that turns the stream least."""
    rows = reader.rows(reader.pick("redundancy", None, model), "block_runs", best=True)
    return {r["length"]: range(r["start"], r["start"] + r["length"]) for r in rows}


def _measured_on(run: Run | None) -> str | None:
    """The data of a run, as text."""
    return f"{run.data.name} ({run.data.hash})" if run is not None and run.data is not None else None


def points(curve: list[Row], target: str, order: str = "ranked") -> dict[int, Row]:
    """Rows of the measured curve of an order, by count."""
    return {row["n_dropped"]: row for row in curve if row["target"] == target and row["order"] == order}


def bracket(curve: list[Row], target: str, n: int, order: str = "ranked") -> tuple[int, ...]:
    """The counts of the curve next to n, from both sides (0, the whole model, is always there)."""
    there = [0, *points(curve, target, order)]
    below, above = max(k for k in there if k <= n), min((k for k in there if k >= n), default=None)
    return () if above is None else (below, above)


def on_curve(curve: list[Row], target: str, n: int, order: str = "ranked") -> float | None:
    """Δ loss at n on the measured curve of an order, straight between its points; None beyond the last."""
    found = {k: row["delta"] for k, row in points(curve, target, order).items()} | {0: 0.0}
    if len(found) == 1 or not (around := bracket(curve, target, n, order)):
        return None
    below, above = around
    share = 0.0 if above == below else (n - below) / (above - below)
    return float(found[below] + share * (found[above] - found[below]))


def parse_units(units: list[str]) -> Any:
    """["attn.3", "head.2.4"] → Drop."""
    from attlas.interp.drop import Drop

    numbers = [(kind, [int(n) for n in rest.split(".")]) for kind, _, rest in (u.partition(".") for u in units)]
    pick = {kind: tuple(sorted(n[0] for k, n in numbers if k == kind)) for kind in ("attn", "mlp", "block")}
    heads = tuple((n[0], n[1]) for k, n in numbers if k == "head")
    return Drop(pick["attn"], pick["mlp"], pick["block"], heads)


def sample(model: Any) -> Any:
    """What losses are measured on here: 8 sequences of embedded held-out text, or 64 images that suit the model."""
    if model.cfg.family == "vit":
        from attlas.data.images.dataset import default_images, load_images

        return load_images(default_images(model.image_spec), model.image_spec, n_images=64, seed=0)
    from attlas.data.text import load_tokens

    seq_len = model.cfg.sequence_length(128)
    return load_tokens("embedded:val", model.tokenizer, seq_len=seq_len, n_tokens=8 * seq_len, seed=0)


def _measure_job(
    reader: WorkspaceReader, model: str, line: tuple[str, str], units: list[str], around: list[tuple[int, list[str]]]
) -> Job:
    """Loss without the units together, without each alone, and at the points around of the curve of `line` (target, order):
    on the same sequences.
    """

    def work(job: Job) -> dict[str, Any]:
        from attlas.analyses.pruning.curve import drop_row
        from attlas.analyses.pruning.measure import LossMeter, measure_drops

        hooked = reader.jobs.model(model)
        held_out = reader.jobs.kept(("prune-data", model), lambda: sample(hooked))
        job.note = f"without {len(units)}, and each alone"
        drops = [units, *([unit] for unit in units), *(names for _, names in around)]
        whole, found, kind = measure_drops(hooked, held_out, [parse_units(names) for names in drops])
        rows = [drop_row("", "ranked", 0, names, one, whole) for names, one in zip(drops, found, strict=True)]
        together, alone, curve = rows[0], rows[1 : 1 + len(units)], rows[1 + len(units) :]
        _, whole_accuracy, _ = whole.total
        return {
            **{key: together[key] for key in ("delta", "low", "high", "loss")},
            "unit": "nats" if kind == LossMeter.LOSS else kind,
            "accuracy": None if math.isnan(whole_accuracy) else together["accuracy"],
            "whole_loss": whole.total[0],
            "whole_accuracy": None if math.isnan(whole_accuracy) else whole_accuracy,
            "predictions": together["n_predictions"],
            "data": held_out.name,
            "hash": held_out.hash,
            "n_sequences": len(held_out),
            "sum_alone": sum(row["delta"] for row in alone),
            "curve": [
                {"target": line[0], "order": line[1], "n_dropped": k, "delta": row["delta"]}
                for (k, names), row in zip(around, curve, strict=True)
            ],
        }

    key = ("prune-what-if", model, line, tuple(units), tuple(tuple(names) for _, names in around))
    return reader.jobs.job(key, f"{model} without {len(units)}", work, SECONDS)


# -- pruned models -----------------------------------------------------------------------------------------------------


def _pruned(reader: WorkspaceReader, params: Params, model: str) -> dict[str, Any]:
    """Pruned models of this workspace; of the chosen one its losses, its healing and what it lost."""
    runs = reader.runs("prune", model)
    run = next((r for r in runs if r.id == params.get("pruned")), runs[0] if runs else None)
    told = run.summary.get("what_dies") if run else None
    lost = reader.pick("what_dies", told.get("run"), model) if isinstance(told, dict) else None
    hooks = list(lost.summary.get("features", {})) if lost else []
    hook = params.get("hook") if params.get("hook") in hooks else (hooks[-1] if hooks else None)
    state = next((s for s in STATES if s == params.get("state")), "dead")
    return {
        "pruned": [_pruned_row(r) for r in runs],
        "pruned_run": run.id if run else None,
        "pruned_summary": run.summary if run else {},
        "losses": reader.rows(run, "drop_curve"),
        "healing": reader.rows(run, "healing", ("step",)),
        "what_dies": {
            "run": lost.id if lost else None,
            "features": lost.summary.get("features", {}) if lost else {},
            "behaviours": reader.rows(lost, "behaviours_lost"),
            "heads": _lost_heads(reader, lost),
            "hooks": hooks,
            "hook": hook,
            "state": state,
            "rows": _lost_features(reader, lost, hook, state),
            "examples": reader.rows(lost, "lost_examples", ("place", "rank"), 12, hook=hook) if hook else [],
            "features_run": _described_by(reader, lost, hook),
        },
    }


def _pruned_row(run: Run) -> Row:
    s = run.summary
    keys = ("format", "loss_before", "loss_after", "accuracy_before", "accuracy_after")
    sizes = ("parameters_before", "parameters_after", "kv_bytes_before", "kv_bytes_after", "out")
    dropped = ", ".join(str(name) for name in s.get("dropped") or [])
    return {"id": run.id, "created": run.created, "dropped": dropped, **{k: s.get(k) for k in (*keys, *sizes)}}


def _lost_heads(reader: WorkspaceReader, run: Run | None) -> list[Row]:
    """Heads whose scores on repeated tokens change most."""
    rows = reader.rows(run, "heads_lost", ("layer", "head"))
    names = ("induction", "previous_token", "duplicate_token")
    change = {id(row): max(abs(row[f"{n}_after"] - row[f"{n}_before"]) for n in names) for row in rows}
    return sorted((row for row in rows if change[id(row)] > 0.01), key=lambda row: -change[id(row)])[:12]


def _lost_features(reader: WorkspaceReader, run: Run | None, hook: str | None, state: str) -> list[Row]:
    """Features of one autoencoder in one state, those with the largest effect before first."""
    path = reader.table_file(run, "features_lost")
    if path is None or hook is None:
        return []
    return reader.query(
        "SELECT * FROM read_parquet(?) WHERE hook = ? AND state = ? ORDER BY size_before DESC, feature LIMIT ?",
        [str(path), hook, state, N_FEATURES],
    )


def _described_by(reader: WorkspaceReader, lost: Run | None, hook: str | None) -> str | None:
    """The features run of the autoencoder on this hook, for links to its features."""
    if lost is None or hook is None:
        return None
    saes = [r.id for r in reader.runs("sae") if r.id in lost.parents and r.summary.get("hook") == hook]
    return next((r.id for r in reader.runs("features") if set(saes) & set(r.parents)), None)


PAGE = Page("/prune", "Prune", data, view)
