"""`attlas features describe`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.features.codes import help_features
from attlas.analyses.features.describe import features
from attlas.cli.common import Output, open_workspace
from attlas.cli.inputs import find_saes, load_data, open_model_of, with_classes
from attlas.cli.together import join
from attlas.data.disk import check_writable
from attlas.saes.formats import load_sae

if TYPE_CHECKING:
    from attlas.analyses.features.describe import FeaturesResult
    from attlas.cli.features.args import Describe
    from attlas.interp import HookedModel
    from attlas.saes.base import SAE


def run(args: Describe, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    group = join(args.device)
    if args.checkpoint is not None:
        check_writable(args.checkpoint.absolute().parent)
        out.how_to_go_on = lambda: f"the same command goes on from '{args.checkpoint}': {out.command()}"
    else:
        again = out.command("--checkpoint", "features.state")
        out.how_to_go_on = lambda: f"nothing of the pass is kept; with --checkpoint it could go on: {again}"
    targets = find_saes(workspace, args.sae)
    model = open_model_of(args, targets[0][1], out)
    data = load_data(model, args, args.config.seed)
    model = with_classes(model, args, data)
    found: dict[str, dict[str, Any]] = {}
    for source, parent in targets:
        sae = load_sae(source).to(model.device)
        state = args.checkpoint
        if state is not None and len(targets) > 1:  # a file each
            state = state.with_name(f"{state.name}-{sae.cfg.hook_name}")
        if not group.first:
            help_features(model, sae, data, args.config, group=group, hook=args.hook)
            continue
        result = features(model, sae, data, args.config, hook=args.hook, checkpoint=state, track=out.track, group=group)
        saved = result.save(workspace, model, data.ref, parents=(parent.id,) if parent else ())
        found[saved.id] = result.summary()
        _show_strongest(result, sae, model, out)
        _say_beyond(result, out)
        out.say(f"wrote run {saved.id} to {workspace.path}")
    if not group.first:
        return {}
    last = list(found)[-1]
    return {"run": last, **found[last], "runs": found}


def _show_strongest(result: FeaturesResult, sae: SAE, model: HookedModel, out: Output) -> None:
    rows = sorted(result.table().to_pylist(), key=lambda r: -r["max_act"] if r["n_active"] >= 10 else 0.0)[:10]
    out.table(
        f"{sae.cfg.hook_name} of {model.name}: {sae.cfg.d_sae} features, {result.n_tokens:,} tokens; strongest ten",
        ["feature", "density", "max", "head", "share", "family", "active on"],
        [
            (r["feature"], r["density"], r["max_act"], r["top_head"], r["top_head_share"], r["family"], r["top_tokens"])
            for r in rows
        ],
    )


_SCORES = {"logit_z": "logit effects", "neighbour_cosine": "nearest neighbours", "phrase": "phrases"}


def _say_beyond(result: FeaturesResult, out: Output) -> None:
    """How many features say more than a random direction with the same heads does."""
    shares = {_SCORES[name]: share for name, share in result.beyond_null().items() if share is not None}
    if shares:
        said = ", ".join(f"{share:.1%} in {name}" for name, share in shares.items())
        out.say(f"features beyond random directions with the same head norms (q ≤ 0.05): {said}")
