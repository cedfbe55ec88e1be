"""`attlas heads measure`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attlas.analyses.heads.atlas import HeadAtlas, head_atlas
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data
from attlas.data.disk import check_writable

if TYPE_CHECKING:
    from attlas.cli.heads.args import Measure

MOST_ROWS = 12


def run(args: Measure, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    if args.checkpoint is not None:
        check_writable(args.checkpoint.absolute().parent)
        out.how_to_go_on = lambda: f"the same command goes on from '{args.checkpoint}': {out.command()}"
    else:
        again = out.command("--checkpoint", "heads.state")
        out.how_to_go_on = lambda: f"nothing of the pass is kept; with --checkpoint it could go on: {again}"
    model = open_model(args, out)
    data = load_data(model, args, args.config.seed)
    result = head_atlas(model, data, args.config, checkpoint=args.checkpoint, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    _show(result, model.name, out)
    return done(saved, workspace, result.summary(), out)


def _show(result: HeadAtlas, model: str, out: Output) -> None:
    """The heads of which the account leaves least unexplained, with their largest shares."""
    share = result.account()
    order = np.argsort(share[-1], axis=None, kind="stable")[:MOST_ROWS]
    rows = []
    for flat in order:
        layer, head = np.unravel_index(flat, share.shape[1:])
        mine = share[:, layer, head]
        largest = [i for i in np.argsort(-mine[:-1], kind="stable") if mine[i] >= 0.01][:3]
        told = ", ".join(f"{result.sums.rules[i]} {mine[i]:.0%}" for i in largest)
        rows.append((f"{layer}.{head}", told, float(mine[-1])))
    n = len(result.sums.n_queries)
    title = (
        f"{model}: heads that the account explains best ({n:,} sequences; share of attention behind the first position)"
    )
    out.table(title, ["head", "spent on", "unexplained"], rows)
