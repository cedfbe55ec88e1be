"""`attlas circuit`: patch, attribute and trace circuits through heads and features."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from attlas.analyses.circuits.config import PatchingConfig
from attlas.cli.circuit.ablate import Ablate, run_ablate
from attlas.cli.circuit.attribution import Dla, Qk, Trace, run_dla, run_qk, run_trace
from attlas.cli.circuit.prompts import PromptArgs, SAEArgs, load_saes, load_task
from attlas.cli.common import ModelArgs, OutArgs, Output, open_model, open_workspace


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


@dataclass(frozen=True)
class Patch(SAEArgs, PromptArgs, ModelArgs, OutArgs):
    """Change one place of the forward pass after the other and measure the task's metric, beside a gradient estimate.

    Places: layers, layer × position, layer × head, or SAE features (with --sae). What is put there: the other prompt's
    activation, zero, the mean, or another prompt's.

    For example:

        attlas circuit patch --model gpt2-mini --task induction --by head
        attlas circuit patch --prompt "Anna met Tom and" --corrupted "Anna met Ben and" --by position
    """

    patching: Annotated[PatchingConfig, tyro.conf.arg(name="")] = field(default_factory=PatchingConfig)


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
    from attlas.analyses.tasks.task import TaskConfig, make_task, score_task, task_names
    from attlas.errors import TaskError

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


def _patch(args: Patch, out: Output) -> dict[str, Any]:
    from attlas.analyses.circuits.activation_patching import patching

    workspace, model = open_workspace(args), open_model(args, out)
    task = load_task(model, args, args.patching.seed, out)
    saes = load_saes(model, args, workspace, out)
    result = patching(model, task, args.patching, saes=saes, track=out.track)
    saved = result.save(workspace, model.ref)
    table = sorted(result.table().to_pylist(), key=lambda row: -abs(row["effect"]))
    labels = dict(result.ranking(len(result.sites)))
    shown = [
        (name, *[row[k] for k in ("effect", "low", "high", "estimate")])
        for name, row in zip(labels, table, strict=True)
    ]
    summary = result.summary()
    out.table(
        f"{model.name}, {task.name}: change of the metric ({result.unit}; base {summary['base']:.3f}; "
        f"{summary['n_prompts']} prompts, seed {args.patching.seed}; intervals are 95 % over prompts)",
        ["place", "effect", "from", "to", "estimate"],
        shown[:12],
    )
    pearson, rank = summary["estimate_pearson"], summary["estimate_spearman"]
    out.say(f"estimate against exact over {summary['n_sites']} places: Pearson {pearson:.3f}, Spearman {rank:.3f}")
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, "task": task.name, **summary, "rows": table}
