"""`attlas circuit dla`: what a logit difference is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from attlas.analyses.circuits.config import DLAConfig
from attlas.cli.circuit.prompts import PromptArgs, load_task
from attlas.cli.common import Output, open_model, open_workspace
from attlas.cli.inputs import SAEArgs, load_saes
from attlas.cli.options import FLAT, ModelArgs, OutArgs

_SHOWN = ("name", "contribution", "low", "high", "right", "wrong", "looks_at", "attention", "label")


@dataclass(frozen=True)
class Dla(SAEArgs, PromptArgs, ModelArgs, OutArgs):
    """Split the logit difference into what each layer, head or feature adds directly (the final norm frozen).

    For example:

        attlas circuit dla --model smollm2-135m --task ioi --by head
    """

    config: Annotated[DLAConfig, FLAT] = field(default_factory=DLAConfig)


def run_dla(args: Dla, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    from attlas.analyses.circuits.logit_attribution import dla

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
