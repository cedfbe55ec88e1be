"""`attlas circuit patch`: what changing one place of the forward pass does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.circuits.activation_patching import patching
from attlas.cli.circuit.prompts import load_task
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_saes

if TYPE_CHECKING:
    from attlas.cli.circuit.args import Patch


def run(args: Patch, out: Output) -> dict[str, Any]:
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
