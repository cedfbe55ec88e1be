"""`attlas features`: what a sparse autoencoder's features do, whose heads' they are, and what another makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from attlas.analyses.features.config import FeaturesConfig
from attlas.cli.common import ModelArgs, OutArgs, Output, open_model, open_workspace
from attlas.cli.export import find_sae, find_saes, model_of
from attlas.cli.inputs import DataArgs, load_data
from attlas.data.disk import check_writable
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.analyses.features.describe import FeaturesResult
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel
    from attlas.saes.base import SAE


@dataclass(frozen=True)
class Args(DataArgs, ModelArgs, OutArgs):
    """Interpret a sparse autoencoder: examples, heads, attribution, logits, families.

    describe: all of that for every feature (the default). survey: each head's top features, in groups, over all of the
    workspace's autoencoders of this model: how many unrelated things does a head do? match: which features of --sae are
    the same, split or absorbed in --other.

    For example:

        attlas features --workspace workspace --n-tokens 100000
        attlas features survey --workspace workspace
        attlas features match --sae RUN --other OTHER-RUN
    """

    what: Annotated[Literal["describe", "survey", "match"], tyro.conf.Positional] = "describe"
    """What to do."""
    n_tokens: int = 16_384
    """How many tokens to use; rare features need more."""
    sae: str | None = None
    """A run id of the workspace, a path, or saelens:RELEASE/ID; by default every SAE of the newest training
    (survey: of the workspace; match: the newest one)."""
    hook: str | None = None
    """Where it sits; by default the hook it was trained on."""
    other: str | None = None
    """match: the autoencoder to compare with, named as --sae is."""
    checkpoint: Path | None = None
    """describe: file to keep the state of a long pass in; the same command goes on from it."""
    config: Annotated[FeaturesConfig, tyro.conf.arg(name="")] = field(default_factory=FeaturesConfig)


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    return _RUN[args.what](args, out)


def _open(args: Args, parent: Run | None, out: Output) -> HookedModel:
    """The model that is named, or else the one the autoencoder was trained on."""
    name = model_of(parent, args.model, Args.model)
    return open_model(ModelArgs(model=name, device=args.device, dtype=args.dtype), out)


def _describe(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.features.describe import features
    from attlas.saes.formats import load_sae

    workspace = open_workspace(args)
    if args.checkpoint is not None:
        check_writable(args.checkpoint.absolute().parent)
        out.how_to_go_on = lambda: f"the same command goes on from '{args.checkpoint}': {out.command()}"
    else:
        again = out.command("--checkpoint", "features.state")
        out.how_to_go_on = lambda: f"nothing of the pass is kept; with --checkpoint it could go on: {again}"
    targets = find_saes(workspace, args.sae)
    model = _open(args, targets[0][1], out)
    data = load_data(model, args, args.config.seed)
    found: dict[str, dict[str, Any]] = {}
    for source, parent in targets:
        sae = load_sae(source).to(model.device)
        state = args.checkpoint
        if state is not None and len(targets) > 1:  # a file each
            state = state.with_name(f"{state.name}-{sae.cfg.hook_name}")
        result = features(model, sae, data, args.config, hook=args.hook, checkpoint=state, track=out.track)
        saved = result.save(workspace, model.ref, data.ref, parents=(parent.id,) if parent else ())
        found[saved.id] = result.summary()
        _show_strongest(result, sae, model, out)
        _say_beyond(result, out)
        out.say(f"wrote run {saved.id} to {workspace.path}")
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


def _survey(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.features.survey import HeadSurveyConfig, head_survey
    from attlas.data.stats import span
    from attlas.data.text import TokenDataset
    from attlas.saes.formats import load_sae

    workspace = open_workspace(args)
    _, first = find_sae(workspace, args.sae)
    model = _open(args, first, out)
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
    data = load_data(model, args, args.config.seed)
    if not isinstance(data, TokenDataset):
        raise ConfigError(f"{model.name} is a vision model; the survey reads features by their tokens")
    saes = {hook: load_sae(str(workspace.folder(r))).to(model.device) for hook, r in runs.items()}
    families = {hook: families_of(workspace, r) for hook, r in runs.items()}
    config = HeadSurveyConfig(
        batch_size=args.config.batch_size,
        skip_positions=args.config.skip_positions,
        exclude_tokens=args.config.exclude_tokens,
        seed=args.config.seed,
    )
    result = head_survey(model, saes, data, config, families=families, track=out.track)
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
        f"{config.n_features} features a head, {result.n_tokens:,} tokens",
        ["head", "groups", "largest", "random dictionaries", "excess", "verdict"],
        rows,
    )
    if not all(families.values()):
        out.say("run `attlas features` for each autoencoder first, and induction features count as one group")
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **result.summary()}


def families_of(workspace: Workspace, sae_run: Run) -> dict[int, str]:
    """feature → family, from the newest features run of this autoencoder; empty without one."""
    for found in workspace.runs("features"):
        if sae_run.id in found.parents:
            table = workspace.read_table(found, "features").select(["feature", "family"]).to_pydict()
            return dict(zip(table["feature"], table["family"], strict=True))
    return {}


def _match(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.features.matching import MatchingConfig, sae_matching
    from attlas.saes.formats import load_sae

    if args.other is None:
        raise ConfigError("match needs --other, the autoencoder to compare --sae with")
    workspace = open_workspace(args)
    source, parent = find_sae(workspace, args.sae)
    other_source, other_parent = find_sae(workspace, args.other)
    model = _open(args, parent, out)
    first, second = (load_sae(s).to(model.device) for s in (source, other_source))
    data = load_data(model, args, args.config.seed)
    config = MatchingConfig(
        batch_size=args.config.batch_size,
        skip_positions=args.config.skip_positions,
        exclude_tokens=args.config.exclude_tokens,
        seed=args.config.seed,
    )
    result = sae_matching(model, first, second, data, config, hook=args.hook, track=out.track)
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
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **summary}


_RUN = {"describe": _describe, "survey": _survey, "match": _match}
