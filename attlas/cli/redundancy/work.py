"""What `attlas redundancy` does: scores of layers, of modules alone, of heads, over a training; saved and shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.analyses.redundancy.heads import HeadEffectsConfig, head_effects
from attlas.analyses.redundancy.modules import module_effects
from attlas.analyses.redundancy.scores import redundancy
from attlas.analyses.redundancy.timeline import redundancy_timeline
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data
from attlas.data.checkpoints import find_checkpoints
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.cli.redundancy import Args


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    if args.checkpoints is not None:
        if args.heads or args.alone:
            raise ConfigError("--heads and --alone measure one model; leave out --checkpoints")
        return _timeline(args, args.checkpoints, out)
    workspace = open_workspace(args)
    model = open_model(args, out)
    data = load_data(model, args, args.config.seed)
    result = redundancy(model, data, args.config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
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
    saved = result.save(workspace, model.ref, data.ref)
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
    config = HeadEffectsConfig(
        batch_size=min(8, args.config.batch_size), seed=args.config.seed, n_bootstrap=args.config.n_bootstrap
    )
    result = head_effects(model, data, config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
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


def _timeline(args: Args, folder: Path, out: Output) -> dict[str, Any]:
    workspace = open_workspace(args)
    checkpoints = find_checkpoints(folder, args.final_step)
    used: list[Any] = []

    def data(model: Any) -> Any:
        used.append(load_data(model, args, args.config.seed))
        return used[0]

    result = redundancy_timeline(checkpoints, data, args.config, track=out.track, device=args.device)
    saved = result.save(workspace, data=used[0].ref)
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
