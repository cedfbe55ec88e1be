"""`attlas vit`: which heads of a vision model matter, how far they look, what they draw, which patches they need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro

from attlas.analyses.vit.config import VitConfig
from attlas.cli.common import ModelArgs, OutArgs, Output, open_model, open_workspace
from attlas.cli.inputs import image_source

if TYPE_CHECKING:
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel


@dataclass(frozen=True)
class Args(ModelArgs, OutArgs):
    """Rank the heads of a vision model by pruning them one at a time, and measure how far each looks.

    heads: just that (the default). pruning: remove heads in groups, greedily, by rank and at random. tokens: attention
    received by patches, accuracy without them, attention rollout on trial. patterns: single-query maps of all heads, coded,
    clustered, laid out.

    For example:

        attlas vit --model vit-mini --n-images 500 --workspace workspace
        attlas vit patterns --model vit-mini --n-maps 2400
    """

    what: Annotated[Literal["heads", "pruning", "tokens", "patterns"], tyro.conf.Positional] = "heads"
    """What to measure."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "vit-mini"
    """vit-mini, dinov2-small (after `attlas models get`), a local Hugging Face folder, or a hub id."""
    images: str = "auto"
    """embedded:glyphs, sklearn:samples, a folder (subfolders are classes) or an .npz; auto suits the model."""
    n_images: int = 800
    """How many images, drawn by the seed."""
    config: Annotated[VitConfig, tyro.conf.arg(name="")] = field(default_factory=VitConfig)
    max_heads: int = 0
    """pruning: heads to remove; 0 goes on until none is left."""
    n_candidates: int = 8
    """pruning: heads tried a step, those that cost least when last tried; 0 tries all (slow)."""
    pruned_to: Literal["zero", "mean_per_position", "mean"] = "zero"
    """pruning: what the z of removed heads becomes; zero is what a checkpoint without them computes."""
    remove_at: tuple[int, ...] = ()
    """tokens: layers before which patches are removed; none given takes the first and the middle one."""
    n_maps: int = 3600
    """patterns: maps to draw, equally many of every head."""
    n_clusters: int = 8
    """patterns: clusters."""
    n_latent: int = 8
    """patterns: size of the autoencoder's code."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    from attlas.data.images.dataset import load_images

    workspace = open_workspace(args)
    model = open_model(args, out)
    images = load_images(
        image_source(model, args.images), model.image_spec, n_images=args.n_images, seed=args.config.seed
    )
    saved, summary = _RUN[args.what](args, out, model, images, workspace)
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **summary}


Done: TypeAlias = "tuple[Run, dict[str, Any]]"


def _heads(args: Args, out: Output, model: HookedModel, images: ImageDataset, workspace: Workspace) -> Done:
    from attlas.analyses.vit.heads import vit

    result = vit(model, images, args.config, track=out.track)
    saved = result.save(workspace, model.ref, images.ref)
    values = result.heatmap(result.main_metric)
    ablations = {e.ablation: result.heatmap(result.main_metric, e.ablation) for e in result.importance}
    shown = {f"{result.main_metric}, {name.replace('_', ' ')}": found for name, found in ablations.items()}
    if result.strength is not None:
        shown |= {"reach, px": result.heatmap("mean_distance_px"), "CLS → patches": result.heatmap("cls_to_patch")}
    order = sorted(((float(v), at) for at, v in np.ndenumerate(values)), reverse=True)[:8]
    how = f"z set to: {', '.join(name.replace('_', ' ') for name in ablations)}; " if ablations else ""
    out.table(
        f"{model.name}: heads by {result.main_metric} ({how}{len(images)} images)",
        ["head", *shown],
        [(f"{at[0]}.{at[1]}", *(float(found[at]) for found in shown.values())) for _, at in order],
    )
    return saved, result.summary()


def _pruning(args: Args, out: Output, model: HookedModel, images: ImageDataset, workspace: Workspace) -> Done:
    from attlas.analyses.vit.pruning import VitPruningConfig, vit_pruning

    config = VitPruningConfig(
        n_search=min(200, max(1, len(images) // 2)),
        n_candidates=args.n_candidates,
        max_heads=args.max_heads,
        ablation=args.pruned_to,
        batch_size=args.config.batch_size,
        seed=args.config.seed,
    )
    result = vit_pruning(model, images, config, track=out.track)
    saved, summary = result.save(workspace, model.ref, images.ref), result.summary()
    shown = [(name.replace("_", " "), value) for name, value in summary.items()]
    out.table(f"{model.name}: {summary['metric']} over the removal of heads", ["what", "value"], shown)
    return saved, summary


def _tokens(args: Args, out: Output, model: HookedModel, images: ImageDataset, workspace: Workspace) -> Done:
    from attlas.analyses.vit.tokens.run import VitTokensConfig, vit_tokens

    config = VitTokensConfig(remove_at=args.remove_at, batch_size=args.config.batch_size, seed=args.config.seed)
    result = vit_tokens(model, images, config, track=out.track)
    saved, summary = result.save(workspace, model.ref, images.ref), result.summary()
    shown = [(name.replace("_", " "), value) for name, value in summary.items()]
    out.table(f"{model.name}: patches removed, and rollout against chance", ["what", "value"], shown)
    return saved, summary


def _patterns(args: Args, out: Output, model: HookedModel, images: ImageDataset, workspace: Workspace) -> Done:
    from attlas.analyses.vit.patterns.run import VitPatternsConfig, vit_patterns

    config = VitPatternsConfig(
        n_maps=args.n_maps, n_clusters=args.n_clusters, n_latent=args.n_latent, seed=args.config.seed
    )
    result = vit_patterns(model, images, config, track=out.track)
    saved, summary = result.save(workspace, model.ref, images.ref), result.summary()
    tables = result.tables()
    clusters = tables["clusters"].to_pylist()
    out.table(
        f"{model.name}: clusters of {summary['n_maps']} maps",
        ["cluster", "name", "share", "heads", "near", "row", "column", "evenness"],
        [
            (
                c["cluster"],
                c["name"],
                c["share"],
                c["n_heads"],
                c["near"],
                c["same_row"],
                c["same_column"],
                c["evenness"],
            )
            for c in clusters
        ],
    )
    quality = tables["pattern_quality"].to_pylist()
    out.table(
        f"on {quality[0]['n_held_out']} maps of held-out images; ari: agreement of {quality[0]['n_seeds']} fresh draws; null: "
        "Gaussian vectors of the same mean and covariance, without clusters",
        ["code", "explained", "ari", "ari null", "silhouette", "silhouette null"],
        [
            (q["method"], q["explained"], q["ari"], q["ari_null"], q["silhouette"], q["silhouette_null"])
            for q in quality
        ],
    )
    return saved, summary


_RUN = {"heads": _heads, "pruning": _pruning, "tokens": _tokens, "patterns": _patterns}
