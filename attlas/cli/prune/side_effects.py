"""The part of `attlas prune --what-dies` that shows what a pruned model loses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.pruning.side_effects.report import SideEffectsConfig, drop_side_effects
from attlas.cli.common import Output, done
from attlas.cli.inputs import SAEArgs, find_sae, load_saes
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.interp.drop import Drop

if TYPE_CHECKING:
    from attlas.cli.prune.args import Args


def print_side_effects(
    model: HookedModel,
    drop: Drop,
    data: TokenDataset | ImageDataset,
    args: Args,
    workspace: Workspace,
    out: Output,
) -> dict[str, Any]:
    """Compare, save, show; the run's id and summary."""
    saes = load_saes(model, SAEArgs(args.sae), workspace, out)
    config = SideEffectsConfig(n_prompts=args.n_prompts, batch_size=args.curve.batch_size, seed=args.curve.seed)
    result = drop_side_effects(model, drop, data, saes, config, track=out.track)
    runs = [find_sae(workspace, name)[1] for name in args.sae]
    saved = result.save(workspace, model.ref, data.ref, parents=tuple(run.id for run in runs if run is not None))
    if result.tallies:
        states = ("absent", "dead", "weaker", "same", "stronger", "rare")
        counts = {hook: result.states(hook) for hook in result.tallies}
        out.table(
            f"features by what the drop does to them ({data.name})",
            ["autoencoder", *states],
            [(hook, *[found.count(state) for state in states]) for hook, found in counts.items()],
        )
    if result.behaviours:
        out.table(
            f"behaviours, {args.n_prompts} prompts each; 95 % interval of the difference",
            ["task", "before", "after", "from", "to", "right before", "right after"],
            [
                [row[key] for key in ("task", "before", "after", "low", "high", "accuracy_before", "accuracy_after")]
                for row in result.behaviours
            ],
        )
        for row in result.behaviours:
            if not row["able"]:
                out.say(f"{row['task']}: the whole model cannot do it either")
        most = sorted(result.heads, key=lambda row: row["induction_after"] - row["induction_before"])[:3]
        lost = [f"{r['layer']}.{r['head']} {r['induction_before']:.2f} → {r['induction_after']:.2f}" for r in most]
        out.say(f"induction scores that fall most: {', '.join(lost)}")
    for task, why in result.refused.items():
        out.say(f"{task}: {why}")
    return done(saved, workspace, result.summary(), out)
