"""`attlas circuit`: patch, attribute and trace circuits through heads and features."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from attlas.cli.circuit.ablate import Ablate, run_ablate
from attlas.cli.circuit.dla import Dla, run_dla
from attlas.cli.circuit.patch import Patch, _patch
from attlas.cli.circuit.qk import Qk, run_qk
from attlas.cli.circuit.trace import Trace, run_trace
from attlas.cli.common import Output, open_model
from attlas.cli.options import ModelArgs
from attlas.errors import TaskError


@dataclass(frozen=True)
class Tasks(ModelArgs):
    """List the tasks, or score the model on one: its accuracy, and its metric with a 95 % interval over prompts.

    For example:

        attlas circuit tasks --task ioi --model smollm2-135m --n-prompts 64
    """

    task: str | None = None
    """Score this one; "all" scores each; without it the tasks are only listed."""
    n_prompts: int = 32
    """How many prompts."""
    variant: str = "mixed"
    """ioi: abba, baba or mixed."""
    seed: int = 0
    """Seed of the prompts and of the interval."""
    json: bool = False
    """Print the result as JSON on stdout."""


Args = (
    Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Patch, tyro.conf.subcommand("patch")]
    | Annotated[Dla, tyro.conf.subcommand("dla")]
    | Annotated[Trace, tyro.conf.subcommand("trace")]
    | Annotated[Qk, tyro.conf.subcommand("qk")]
    | Annotated[Ablate, tyro.conf.subcommand("ablate")]
)
DEFAULT_ARGV = ["tasks"]


def run(args: Tasks | Patch | Dla | Trace | Qk | Ablate, out: Output) -> dict[str, Any]:
    """Do what the sub-verb says."""
    if isinstance(args, Tasks):
        return _tasks(args, out)
    if isinstance(args, Patch):
        return _patch(args, out)
    if isinstance(args, Dla):
        return run_dla(args, out)
    if isinstance(args, Ablate):
        return run_ablate(args, out)
    return run_trace(args, out) if isinstance(args, Trace) else run_qk(args, out)


def _tasks(args: Tasks, out: Output) -> dict[str, Any]:
    from attlas.analyses.tasks.catalog import make_task, score_task, task_names
    from attlas.analyses.tasks.task import TaskConfig

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
