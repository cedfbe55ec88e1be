"""`attlas vit tokens`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.vit.tokens.run import vit_tokens
from attlas.cli.common import Output

if TYPE_CHECKING:
    from attlas.cli.vit.args import Tokens
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel


def run(
    args: Tokens, out: Output, model: HookedModel, images: ImageDataset, workspace: Workspace
) -> tuple[Run, dict[str, Any]]:
    """Compute and show; the run and its headline."""
    result = vit_tokens(model, images, args.config, track=out.track)
    saved, summary = result.save(workspace, model, images.ref), result.summary()
    shown = [(name.replace("_", " "), value) for name, value in summary.items()]
    out.table(f"{model.name}: patches removed, and rollout against chance", ["what", "value"], shown)
    return saved, summary
