"""`attlas features survey`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.features.survey import head_survey
from attlas.cli.common import Output, done, open_workspace
from attlas.cli.inputs import families_of, find_sae, load_text, open_model_of
from attlas.data.stats import span
from attlas.errors import ConfigError
from attlas.saes.formats import load_sae

if TYPE_CHECKING:
    from attlas.cli.features.args import Survey
    from attlas.data.workspace import Run


def run(args: Survey, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    _, first = find_sae(workspace, args.sae)
    model = open_model_of(args, first, out)
    runs: dict[str, Run] = {}
    for run_ in workspace.runs("sae"):  # the newest first
        hook = str(run_.summary.get("hook", ""))
        mine = run_.model is not None and run_.model.hash == model.ref.hash
        if mine and hook.endswith("hook_z") and (args.hook is None or hook == args.hook):
            runs.setdefault(hook, run_)
    if not runs:
        raise ConfigError(
            f"'{workspace.path}' holds no autoencoder on hook_z of {model.name}; train one (attlas train)"
        )
    if model.cfg.family == "vit":
        raise ConfigError(f"{model.name} is a vision model; the survey reads features by their tokens")
    data = load_text(model, args, args.config.seed)
    saes = {hook: load_sae(str(workspace.folder(r))).to(model.device) for hook, r in runs.items()}
    families = {hook: families_of(workspace, r) for hook, r in runs.items()}
    result = head_survey(model, saes, data, args.config, families=families, track=out.track)
    saved = result.save(workspace, model.ref, data.ref, parents=tuple(r.id for r in runs.values()))
    rows = [
        (
            f"{r['layer']}.{r['head']}",
            r["n_groups"],
            r["largest_group"],
            f"{r['null_groups']:.1f} ({r['null_low']:.0f}–{r['null_high']:.0f})",
            f"{r['excess']:+.1f} ({r['excess_low']:+.1f} to {r['excess_high']:+.1f})",
            r["verdict"],
        )
        for r in result.heads
    ]
    share, low, high = result.polysemantic()
    out.table(
        f"{model.name}: {share:.0%} of {len(rows)} heads are polysemantic ({span(low, high, '.0%')}); "
        f"{args.config.n_features} features a head, {result.n_tokens:,} tokens",
        ["head", "groups", "largest", "random dictionaries", "excess", "verdict"],
        rows,
    )
    if not all(families.values()):
        out.say("run `attlas features` for each autoencoder first, and induction features count as one group")
    return done(saved, workspace, result.summary(), out)
