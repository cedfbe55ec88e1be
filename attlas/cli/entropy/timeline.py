"""`attlas entropy timeline`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.attention.head_timeline import timeline
from attlas.analyses.common.checkpoints import forget
from attlas.cli.checkpoints import asked_for, opening_of
from attlas.cli.common import Output, done, open_workspace
from attlas.cli.inputs import load_data

if TYPE_CHECKING:
    from attlas.cli.entropy.args import Timeline


def run(args: Timeline, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    checkpoints = asked_for(args.checkpoints, args.model, args.revisions, args.final_step, out)
    opening = opening_of("entropy", checkpoints, workspace, out, args.device, args.dtype)
    used: list[Any] = []

    def data(model: Any) -> Any:
        used.append(load_data(model, args, args.config.seed))
        return used[0]

    result = timeline(checkpoints, data, args.config, track=out.track, opening=opening)
    saved = result.save(workspace, data=used[0].ref)
    forget(opening)
    rows = [(f"{b.layer}.{b.head}", b.after, b.by, b.score, b.null) for b in result.births()]
    shown = ["head", "after step", "by step", "score at the end", "null"]
    if rows:
        out.table("induction heads: the score stays above its null from then on", shown, rows)
    else:
        out.say("induction heads: none; no head's score stays above its null to the end")
    return done(saved, workspace, result.summary(), out)
