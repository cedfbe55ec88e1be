"""`attlas vit pruning`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.vit.pruning import VitPruningConfig, vit_pruning
from attlas.cli.common import Output

if TYPE_CHECKING:
    from attlas.cli.vit import Args
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel


def run(
    args: Args, out: Output, model: HookedModel, images: ImageDataset, workspace: Workspace
) -> tuple[Run, dict[str, Any]]:
    """Compute and show; the run and its headline."""
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
