"""`attlas heads project`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.heads.projection_tables import VECTORS
from attlas.analyses.heads.projections import head_projections
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data

if TYPE_CHECKING:
    from attlas.cli.heads.args import Project


def run(args: Project, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    model = open_model(args, out)
    data = load_data(model, args, args.config.seed)
    result = head_projections(model, data, args.config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    rows = [(VECTORS[name], float(share.sum(-1).mean())) for name, share in result.shares.items()]
    title = (
        f"{model.name}: variance on {args.config.n_axes} components, mean over heads ({result.n_positions:,} positions)"
    )
    out.table(title, ["vectors", "share"], rows)
    return done(saved, workspace, result.summary(), out)
