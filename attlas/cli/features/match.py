"""`attlas features match`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.features.matching import sae_matching
from attlas.cli.common import Output, done, open_workspace
from attlas.cli.inputs import find_sae, load_data, open_model_of
from attlas.errors import ConfigError
from attlas.saes.formats import load_sae

if TYPE_CHECKING:
    from attlas.cli.features.args import Match


def run(args: Match, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    if args.other is None:
        raise ConfigError("match needs --other, the autoencoder to compare --sae with")
    workspace = open_workspace(args)
    source, parent = find_sae(workspace, args.sae)
    other_source, other_parent = find_sae(workspace, args.other)
    model = open_model_of(args, parent, out)
    first, second = (load_sae(s).to(model.device) for s in (source, other_source))
    data = load_data(model, args, args.config.seed)
    result = sae_matching(model, first, second, data, args.config, hook=args.hook, track=out.track)
    saved = result.save(workspace, model.ref, data.ref, tuple(p.id for p in (parent, other_parent) if p is not None))
    summary = result.summary()
    title = f"{summary['n_active_features']} features of {first.cfg.d_sae} against {second.cfg.d_sae}"
    rows = [
        (name.replace("_", " "), summary[name], summary.get(f"{name}_control"), summary.get(f"{name}_shuffled"))
        for name in ("same", "mean_cosine", "split", "absorbed", "mean_correlation")
    ]
    out.table(title, ["what", "value", "random, same heads", "shuffled"], rows)
    out.say(
        f"{summary['beyond_control'] or 0:.1%} have a cosine beyond {summary['cosine_control_q95'] or 0:.3f}, the 95th "
        "percentile of the random dictionary's"
    )
    return done(saved, workspace, summary, out)
