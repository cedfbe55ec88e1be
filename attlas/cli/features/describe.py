"""`attlas features describe`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.features.codes import help_features
from attlas.analyses.features.describe import features
from attlas.analyses.features.lorsa.describe import lorsa_features
from attlas.cli.common import Output, open_workspace
from attlas.cli.inputs import find_lorsa, find_saes, load_data, load_text, open_model_of, with_classes
from attlas.cli.together import join
from attlas.data.disk import check_writable
from attlas.errors import ConfigError
from attlas.saes.base import SAE
from attlas.saes.formats import load_sae
from attlas.saes.lorsa.files import load_lorsa

if TYPE_CHECKING:
    from attlas.analyses.features.describe import FeaturesResult
    from attlas.cli.features.args import Describe
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel
    from attlas.saes.lorsa.model import Lorsa


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
    lorsa = find_lorsa(workspace, args.sae)
    if lorsa is not None:
        return _of_lorsa(args, workspace, *lorsa, out)
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


def _of_lorsa(args: Describe, workspace: Workspace, source: str, parent: Run | None, out: Output) -> dict[str, Any]:
    """The same of a Lorsa, whose examples have z patterns."""
    odd = sorted({"hook", "checkpoint", "images"} & out.given)
    if odd:
        raise ConfigError(f"--{odd[0]} does not apply to a Lorsa's features; leave it out")
    model = open_model_of(args, parent, out)
    lorsa = load_lorsa(source, model.device)
    data = load_text(model, args, args.config.seed)
    result = lorsa_features(model, lorsa, data, args.config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref, parents=(parent.id,) if parent else ())
    _show_strongest(result, lorsa, model, out)
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **result.summary(), "runs": {saved.id: result.summary()}}


def _show_strongest(result: FeaturesResult, sae: SAE | Lorsa, model: HookedModel, out: Output) -> None:
    hook = sae.cfg.hook_name if isinstance(sae, SAE) else sae.cfg.hook_out
    rows = sorted(result.table().to_pylist(), key=lambda r: -r["max_act"] if r["n_active"] >= 10 else 0.0)[:10]
    out.table(
        f"{hook} of {model.name}: {sae.cfg.d_sae} features, {result.n_tokens:,} tokens; strongest ten",
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
