"""`attlas circuit tasks`: the tasks there are, and how well a model does them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from attlas.analyses.tasks.catalog import make_task, score_task, task_names
from attlas.analyses.tasks.task import TaskConfig
from attlas.cli.common import Output, open_model
from attlas.errors import TaskError

if TYPE_CHECKING:
    from attlas.cli.circuit.args import Tasks


def run(args: Tasks, out: Output) -> dict[str, Any]:
    """List, or score."""
    if args.task is None:
        out.table("tasks (score one with --task NAME)", ["task"], [(name,) for name in task_names()])
        return {"tasks": list(task_names())}
    model = open_model(args, out)
    scores: dict[str, Any] = {}
    names = task_names() if args.task == "all" else (args.task,)
    for name in out.track(names, "scoring"):
        config = TaskConfig(task=name, n_prompts=args.n_prompts, variant=args.variant, seed=args.seed)
        try:
            task = make_task(model, config)
        except TaskError as error:
            if args.task != "all":
                raise
            scores[name] = {"refused": str(error)}
            continue
        scores[name] = {**dataclasses.asdict(score_task(model, task, seed=args.seed)), "notes": list(task.notes)}
    columns = ["task", "accuracy", "from", "to", "top 1", "metric", "from", "to", "unit"]
    keys = ("accuracy", "accuracy_low", "accuracy_high", "top1", "metric", "metric_low", "metric_high", "unit")
    rows = [(name, *[s[k] for k in keys]) for name, s in scores.items() if "refused" not in s]
    out.table(f"{model.name}: {args.n_prompts} prompts, 95 % intervals over prompts", columns, rows)
    for name, s in scores.items():
        if "refused" in s:
            out.say(f"{name}: {s['refused']}")
    return {"model": model.name, "n_prompts": args.n_prompts, "seed": args.seed, "scores": scores}
