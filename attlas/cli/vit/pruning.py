"""`attlas vit pruning`: the work, and what is shown of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from attlas.analyses.vit.pruning import vit_pruning
from attlas.cli.common import Output

if TYPE_CHECKING:
    from attlas.cli.vit.args import Pruning
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel


def run(
    args: Pruning, out: Output, model: HookedModel, images: ImageDataset, workspace: Workspace
) -> tuple[Run, dict[str, Any]]:
    """Compute and show; the run and its headline."""
    config = args.config
    if "n_search" not in out.given:
        config = dataclasses.replace(config, n_search=min(config.n_search, max(1, len(images) // 2)))
    result = vit_pruning(model, images, config, track=out.track)
    saved, summary = result.save(workspace, model, images.ref), result.summary()
    shown = [(name.replace("_", " "), value) for name, value in summary.items()]
    out.table(f"{model.name}: {summary['metric']} over the removal of heads", ["what", "value"], shown)
    return saved, summary
