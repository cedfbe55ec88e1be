"""`attlas vit heads`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attlas.analyses.vit.heads import vit
from attlas.cli.common import Output

if TYPE_CHECKING:
    from attlas.cli.vit.args import Heads
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel


def run(
    args: Heads, out: Output, model: HookedModel, images: ImageDataset, workspace: Workspace
) -> tuple[Run, dict[str, Any]]:
    """Compute and show; the run and its headline."""
    result = vit(model, images, args.config, track=out.track)
    saved = result.save(workspace, model, images.ref)
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
