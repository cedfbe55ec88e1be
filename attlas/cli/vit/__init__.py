"""`attlas vit`: which heads of a vision model matter, how far they look, what they draw, which patches they need."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from attlas.analyses.vit.config import VitConfig
from attlas.cli.common import Output, open_model, open_workspace
from attlas.cli.inputs import image_source
from attlas.cli.options import ModelArgs, OutArgs


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
    saved, summary = importlib.import_module(f"attlas.cli.vit.{args.what}").run(args, out, model, images, workspace)
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **summary}
