"""`attlas vit patterns`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.vit.patterns.run import vit_patterns
from attlas.cli.common import Output

if TYPE_CHECKING:
    from attlas.cli.vit.args import Patterns
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel


def run(
    args: Patterns, out: Output, model: HookedModel, images: ImageDataset, workspace: Workspace
) -> tuple[Run, dict[str, Any]]:
    """Compute and show; the run and its headline."""
    result = vit_patterns(model, images, args.config, track=out.track)
    saved, summary = result.save(workspace, model, images.ref), result.summary()
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
