"""`attlas circuit dla`: what a logit difference is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.circuits.logit_attribution import dla
from attlas.cli.circuit.prompts import load_task
from attlas.cli.common import Output, open_model, open_workspace
from attlas.cli.inputs import load_saes

_SHOWN = ("name", "contribution", "low", "high", "right", "wrong", "looks_at", "attention", "label")

if TYPE_CHECKING:
    from attlas.cli.circuit.args import Dla


def run(args: Dla, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace, model = open_workspace(args), open_model(args, out)
    task = load_task(model, args, args.config.seed, out)
    saes = load_saes(model, args, workspace, out)
    result = dla(model, task, args.config, saes=saes, track=out.track)
    saved = result.save(workspace, model.ref)
    rows = sorted(result.table().to_pylist(), key=lambda row: -abs(row["contribution"]))
    title = (
        f"{model.name}, {task.name}: logit difference {result.values.mean():.3f} in parts ({len(task)} prompts, seed "
        f"{args.config.seed}; intervals are 95 % over prompts)"
    )
    out.table(
        title,
        ["part", "logits", "from", "to", "on right", "on wrong", "looks at", "attention", "label"],
        [[r[k] for k in _SHOWN] for r in rows[:15]],
    )
    out.say(f"the parts miss the model's logits by {result.gap:.1e} at most; wrote run {saved.id} to {workspace.path}")
    return {
        "run": saved.id,
        "task": task.name,
        **result.summary(),
        "rows": rows,
        "lens": result.lens_table().to_pylist(),
    }
