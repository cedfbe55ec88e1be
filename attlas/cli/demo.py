"""`attlas demo`: the whole job on the embedded models, with no network."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from attlas.cli.common import OutArgs, Output, open_workspace
from attlas.data.images import load_images
from attlas.data.text import TokenDataset, load_tokens
from attlas.data.workspace import Ref, Run, Workspace
from attlas.interp import HookedModel, load_model


@dataclass(frozen=True)
class Args(OutArgs):
    """Train, evaluate and interpret a sparse autoencoder on gpt2-mini, measure its entropy and redundancy, rank the
    heads of vit-mini, and open the atlas. Steps whose results are in the workspace already are skipped.

    Example: attlas demo --workspace workspace
    """

    hook: str = "blocks.3.attn.hook_z"
    """Where to train the autoencoder; layer 3 of gpt2-mini holds its induction head."""
    n_tokens: int = 1_200_000
    """Tokens to train on."""
    n_images: int = 500
    """Glyphs to rank ViT heads on."""
    seed: int = 0
    """Seed of everything."""
    serve: bool = True
    """Open the dashboard at the end; --no-serve stops before."""
    port: int = 8050
    """Port of the dashboard on 127.0.0.1."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Five steps on text, one on images; then the dashboard."""
    workspace = open_workspace(args)
    model = load_model("gpt2-mini")
    held_out = load_tokens("embedded:val", model.tokenizer, seq_len=256, n_tokens=65_536, seed=args.seed)
    seconds: dict[str, float] = {}
    runs: dict[str, str] = {}

    def step(name: str, compute: Any) -> Run:
        out.say(f"[bold]{name}[/bold]")
        start = time.perf_counter()
        record: Run = compute()
        seconds[name] = round(time.perf_counter() - start, 1)
        runs[name] = record.id
        return record

    sae_run = step("train", lambda: _train(args, workspace, out))
    step("evaluate", lambda: _evaluate(workspace, model, held_out, sae_run, out))
    step("features", lambda: _features(workspace, model, held_out, sae_run, out))
    step("entropy", lambda: _entropy(workspace, model, held_out, out))
    step("redundancy", lambda: _redundancy(workspace, model, held_out, out))
    step("vit", lambda: _vit(args, workspace, out))
    out.table("attlas demo", ["step", "seconds", "run"], [(n, seconds[n], runs[n]) for n in seconds])
    if args.serve:
        from attlas.dashboard.app import serve

        serve(workspace.path, port=args.port)
    return {"workspace": str(workspace.path), "seconds": seconds, "runs": runs}


def _train(args: Args, workspace: Workspace, out: Output) -> Run:
    from attlas.cli.train import training_bar
    from attlas.saes.train import train_sae
    from attlas.saes.train_config import TrainConfig

    config = TrainConfig(
        model="gpt2-mini", hooks=(args.hook,), arch="topk", k=16, d_sae=1536, n_tokens=args.n_tokens, seed=args.seed
    )
    for found in workspace.runs("sae", model="gpt2-mini"):
        if found.config.get("n_tokens") == args.n_tokens and args.hook in str(found.config.get("hooks")):
            return found
    with training_bar(out, config) as on_step:
        result = train_sae(config, on_step=on_step)
    return result.save(workspace)[0]


def _evaluate(workspace: Workspace, model: HookedModel, data: TokenDataset, sae_run: Run, out: Output) -> Run:
    from attlas.saes.evaluation import EvalConfig, evaluate
    from attlas.saes.formats import load_sae
    from attlas.saes.sources import Inputs

    if found := _child(workspace, "sae_eval", sae_run):
        return found
    sae = load_sae(str(workspace.folder(sae_run)))
    result = evaluate(sae, model, Inputs.of(data), EvalConfig(), track=out.track)
    for row in result.rows:
        if row["subject"] == "sae" and row["metric"] in (
            "l0",
            "explained_variance",
            "ce_recovered",
            "ce_loss_recovered",
        ):
            out.say(f"  {row['metric']}: {row['value']:.3f}")
    return result.save(workspace, parents=(sae_run.id,))


def _features(workspace: Workspace, model: HookedModel, data: TokenDataset, sae_run: Run, out: Output) -> Run:
    from attlas.analyses.features import FeaturesConfig, features
    from attlas.saes.formats import load_sae

    if found := _child(workspace, "features", sae_run):
        return found
    sae = load_sae(str(workspace.folder(sae_run)))
    result = features(model, sae, data, FeaturesConfig(), track=out.track)
    return result.save(workspace, model.ref, data.ref, parents=(sae_run.id,))


def _child(workspace: Workspace, kind: str, parent: Run) -> Run | None:
    return next((r for r in workspace.runs(kind) if parent.id in r.parents), None)


def _same(workspace: Workspace, kind: str, model: Ref, data: Ref) -> Run | None:
    return next((r for r in workspace.runs(kind) if r.model == model and r.data == data), None)


def _entropy(workspace: Workspace, model: HookedModel, data: TokenDataset, out: Output) -> Run:
    from attlas.analyses.entropy import entropy

    found = _same(workspace, "entropy", model.ref, data.ref)
    return found or entropy(model, data, track=out.track).save(workspace, model.ref, data.ref)


def _redundancy(workspace: Workspace, model: HookedModel, data: TokenDataset, out: Output) -> Run:
    from attlas.analyses.redundancy import redundancy

    found = _same(workspace, "redundancy", model.ref, data.ref)
    return found or redundancy(model, data, track=out.track).save(workspace, model.ref, data.ref)


def _vit(args: Args, workspace: Workspace, out: Output) -> Run:
    from attlas.analyses.vit import vit

    model = load_model("vit-mini")
    images = load_images("embedded:glyphs", model.image_spec, n_images=args.n_images, seed=args.seed)
    found = _same(workspace, "vit", model.ref, images.ref)
    return found or vit(model, images, track=out.track).save(workspace, model.ref, images.ref)
