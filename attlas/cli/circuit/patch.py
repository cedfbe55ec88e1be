"""`attlas circuit patch`: what changing one place of the forward pass does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from attlas.analyses.circuits.config import PatchingConfig
from attlas.cli.circuit.prompts import PromptArgs, load_task
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import SAEArgs, load_saes
from attlas.cli.options import FLAT, ModelArgs, OutArgs


@dataclass(frozen=True)
class Patch(SAEArgs, PromptArgs, ModelArgs, OutArgs):
    """Change one place of the forward pass after the other and measure the task's metric, beside a gradient estimate.

    Places: layers, layer × position, layer × head, or SAE features (with --sae). What is put there: the other prompt's
    activation, zero, the mean, or another prompt's.

    For example:

        attlas circuit patch --model gpt2-mini --task induction --by head
        attlas circuit patch --prompt "Anna met Tom and" --corrupted "Anna met Ben and" --by position
    """

    patching: Annotated[PatchingConfig, FLAT] = field(default_factory=PatchingConfig)


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
    return done(saved, workspace, {"task": task.name, **summary, "rows": table}, out)
