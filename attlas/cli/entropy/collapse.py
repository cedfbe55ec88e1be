"""`attlas entropy collapse-demo`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.stability.collapse import CollapseConfig, collapse_demo
from attlas.cli.common import Output, done, open_workspace

if TYPE_CHECKING:
    from attlas.cli.entropy import Args


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    steps: dict[str, Any] = {"vit_steps": args.demo_steps, "lm_steps": args.demo_steps} if args.demo_steps else {}
    config = CollapseConfig(models=args.demo_models, seeds=args.seeds, qk_gain=args.qk_gain, **steps)
    result = collapse_demo(config, track=out.track)
    saved = result.save(workspace)
    shown = ("model", "method", "seed", "final_loss", "final_normalized", "collapsed_heads", "first_collapse")
    rows = [[row[name] for name in shown] for row in result.runs.to_pylist()]
    out.table("training loss (nats) and normalised entropy at the end", shown, rows)
    return done(saved, workspace, result.summary(), out)
