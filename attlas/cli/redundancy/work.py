"""What `attlas redundancy` does: scores of layers, of modules alone, of heads, over a training; saved and shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.common.checkpoints import forget
from attlas.analyses.redundancy.heads import HeadEffectsConfig, head_effects
from attlas.analyses.redundancy.modules import module_effects
from attlas.analyses.redundancy.scores import redundancy
from attlas.analyses.redundancy.timeline import redundancy_timeline
from attlas.cli.checkpoints import asked_for, opening_of
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data, with_classes

if TYPE_CHECKING:
    from attlas.cli.redundancy import Args


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    if args.checkpoints is not None or args.revisions:
        return _timeline(args, out)
    workspace = open_workspace(args)
    model = open_model(args, out)
    data = load_data(model, args, args.config.seed)
    model = with_classes(model, args, data)
    result = redundancy(model, data, args.config, track=out.track)
    saved = result.save(workspace, model, data.ref)
    ranking = result.ranking()
    out.table(
        f"{model.name}: most redundant modules first ({result.n_tokens:,} tokens; 1 − cosine)",
        ["module", "score"],
        [(f"{module} {layer}", score) for layer, module, score in ranking[:10]],
    )
    found = done(saved, workspace, {**result.summary(), "ranking": ranking}, out)
    if args.alone:
        found["alone"] = _alone(model, data, result, args, workspace, out)
    if args.heads:
        found["heads"] = _heads(model, data, args, workspace, out)
    return found


def _alone(model: Any, data: Any, scores: Any, args: Args, workspace: Any, out: Output) -> dict[str, Any]:
    result = module_effects(model, data, args.config, track=out.track)
    saved = result.save(workspace, model, data.ref)
    agreement = {module: result.rank_correlation(scores, module) for module in ("attn", "mlp", "block")}
    out.table(
        f"{model.name}: Δ loss in nats without one module alone",
        ["layer", "attn", "mlp", "block"],
        [(layer, *map(float, row)) for layer, row in enumerate(result.delta)],
    )
    said = ", ".join(f"{module} {value:.2f}" for module, value in agreement.items())
    out.say(f"scores rank layers as the losses do, Spearman: {said}")
    return done(saved, workspace, {**result.summary(), "rank_correlation_with_score": agreement}, out)


def _heads(model: Any, data: Any, args: Args, workspace: Any, out: Output) -> dict[str, Any]:
    config = _heads_config(args)
    result = head_effects(model, data, config, track=out.track)
    saved = result.save(workspace, model, data.ref)
    rows: dict[tuple[int, int], dict[str, float]] = {}
    for row in result.table().to_pylist():
        rows.setdefault((row["layer"], row["head"]), {})[row["ablation"]] = row["delta"]
    order = sorted(rows, key=lambda head: -rows[head]["zero"])[:10]
    out.table(
        f"{model.name}: heads that matter most (Δ loss in nats; taylor estimates zero)",
        ["head", *config.ablations],
        [(f"{layer}.{head}", *[rows[layer, head][name] for name in config.ablations]) for layer, head in order],
    )
    summary = result.summary()
    out.say(f"first order ranks heads as zero ablation does: Spearman {summary['rank_correlation_taylor']:.2f}")
    return done(saved, workspace, summary, out)


def _heads_config(args: Args) -> HeadEffectsConfig:
    config = args.config
    return HeadEffectsConfig(batch_size=min(8, config.batch_size), seed=config.seed, n_bootstrap=config.n_bootstrap)


def _timeline(args: Args, out: Output) -> dict[str, Any]:
    workspace = open_workspace(args)
    checkpoints = asked_for(args.checkpoints, args.model, args.revisions, args.final_step, out)
    opening = opening_of("redundancy", checkpoints, workspace, out, args.device, args.dtype)
    used: list[Any] = []

    def data(model: Any) -> Any:
        used.append(load_data(model, args, args.config.seed))
        return used[0]

    heads = _heads_config(args) if args.heads else None
    result = redundancy_timeline(
        checkpoints, data, args.config, track=out.track, opening=opening, heads=heads, alone=args.alone
    )
    saved = result.save(workspace, data=used[0].ref)
    forget(opening)
    scores, agreement = result.scores, {module: result.agreement(module) for module in ("attn", "mlp")}
    out.table(
        "1 − cosine over training (low = redundant); ρ: ranking of layers against the last checkpoint's",
        ["step", "loss", *[f"attn {layer}" for layer in range(scores.shape[1])], "ρ attn", "mean mlp", "ρ mlp"],
        [
            (
                checkpoint.step,
                result.losses[i],
                *map(float, scores[i, :, 0]),
                agreement["attn"][i],
                float(scores[i, :, 1].mean()),
                agreement["mlp"][i],
            )
            for i, checkpoint in enumerate(checkpoints)
        ],
    )
    return done(saved, workspace, result.summary(), out)
