"""`attlas vit`: which heads of a vision model matter, and how far they look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from attlas.analyses.vit import VitConfig, vit
from attlas.cli.common import ModelArgs, OutArgs, Output, open_model, open_workspace
from attlas.cli.inputs import image_source
from attlas.data.images import load_images


@dataclass(frozen=True)
class Args(ModelArgs, OutArgs):
    """Rank the heads of a vision model by pruning them one at a time, and measure how far each looks.

    Example: attlas vit --model vit-mini --n-images 500 --workspace workspace
    """

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "vit-mini"
    """vit-mini, dinov2-small (after `attlas models get`), a local Hugging Face folder, or a hub id."""
    images: str = "auto"
    """embedded:glyphs, sklearn:samples, a folder (subfolders are classes) or an .npz; auto suits the model."""
    n_images: int = 2000
    """How many images, drawn by the seed."""
    config: Annotated[VitConfig, tyro.conf.arg(name="")] = field(default_factory=VitConfig)


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    model = open_model(args, out)
    images = load_images(
        image_source(model, args.images), model.image_spec, n_images=args.n_images, seed=args.config.seed
    )
    result = vit(model, images, args.config, track=out.track)
    saved = result.save(workspace, model.ref, images.ref)
    values = result.heatmap(result.main_metric)
    strength = result.strength
    assert strength is not None
    order = sorted(((float(v), i) for i, v in _flat(values)), reverse=True)[:8]
    out.table(
        f"{model.name}: heads by {result.main_metric} ({args.config.ablations[0]} ablation, {len(images)} images)",
        ["head", result.main_metric, "reach, px", "CLS → patches"],
        [
            (f"{layer}.{head}", v, float(strength.distance[layer, head]), float(strength.mean("cls_to_patch")[layer, head]))
            for v, (layer, head) in order
        ],
    )  # fmt: skip
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **result.summary()}


def _flat(values: Any) -> list[tuple[tuple[int, int], float]]:
    return [((layer, head), values[layer, head]) for layer in range(values.shape[0]) for head in range(values.shape[1])]
