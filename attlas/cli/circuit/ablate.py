"""`attlas circuit ablate`: what a prompt's answer loses without some heads, MLPs, features or errors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from attlas.analyses.circuits.ablation import ablate, random_parts
from attlas.analyses.circuits.frozen import FrozenPass, parse_part
from attlas.analyses.circuits.logit_attribution import answers
from attlas.analyses.circuits.terms import LogitTarget
from attlas.cli.circuit.prompts import load_task, prompt_row
from attlas.cli.common import Output, open_model, open_workspace
from attlas.cli.inputs import load_saes
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.cli.circuit.args import Ablate


def run(args: Ablate, out: Output) -> dict[str, Any]:
    """Ablate, show."""
    if args.controls < 0:
        raise ConfigError(f"--controls {args.controls} must be 0 or more")
    if not args.parts:
        raise ConfigError("nothing is to be ablated; name heads, MLPs, features or errors, such as --parts 3.0@-1")
    workspace, model = open_workspace(args), open_model(args, out)
    task = load_task(model, args, args.seed, out)
    saes = load_saes(model, args, workspace, out)
    row = prompt_row(task, args.row)
    frozen = FrozenPass(model, task.tokens[row], saes)
    parts = [parse_part(id) for id in args.parts]
    parts = [replace(part, position=frozen.at(part.position)) for part in parts]
    position, right, wrong = answers(task, row)
    target = LogitTarget(tuple(right), tuple(wrong), position)
    result = ablate(frozen, parts, target)
    generator = np.random.default_rng(args.seed)
    draws = [random_parts(frozen, parts, generator) for _ in range(args.controls)]
    changes = [ablate(frozen, draw, target).summary()["change"] for draw in out.track(draws, "controls") if draw]
    summary = result.summary()
    control = {"n": len(changes)} | _spread(changes)
    tokens = [{**r, "text": model.to_str_tokens([r["id"]])[0]} for r in result.tokens()]
    out.table(
        f"{model.name}, {task.name}, prompt {row}, without {', '.join(summary['parts'])}: logit difference "
        f"{summary['before']:.3f} → {summary['after']:.3f}, KL {summary['kl']:.3f} nats",
        ["next token", "probability", "without"],
        [(json.dumps(t["text"], ensure_ascii=False), t["before"], t["after"]) for t in tokens],
    )
    if changes:
        out.say(
            f"change {summary['change']:.3f}; {len(changes)} random draws of the same kinds: median {control['median']:.3f}, "
            f"from {control['low']:.3f} to {control['high']:.3f} (5th and 95th percentile)"
        )
    elif args.controls:
        out.say("no control: MLPs and errors have no others of their kind in the layer")
    return {"task": task.name, "row": row, **summary, "control": control, "tokens": tokens}


def _spread(changes: list[float]) -> dict[str, float | None]:
    if not changes:
        return {"low": None, "median": None, "high": None}
    low, median, high = np.quantile(changes, [0.05, 0.5, 0.95])
    return {"low": float(low), "median": float(median), "high": float(high)}
