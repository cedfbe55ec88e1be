"""`attlas entropy collapse`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.stability.collapse import collapse_demo
from attlas.cli.common import Output, done, open_workspace

if TYPE_CHECKING:
    from attlas.cli.entropy.args import Collapse


def run(args: Collapse, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    result = collapse_demo(args.config, track=out.track)
    saved = result.save(workspace)
    shown = ("model", "method", "seed", "final_loss", "final_normalized", "collapsed_heads", "first_collapse")
    rows = [[row[name] for name in shown] for row in result.runs.to_pylist()]
    out.table("training loss (nats) and normalised entropy at the end", shown, rows)
    return done(saved, workspace, result.summary(), out)
