"""`attlas entropy timeline`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.attention.head_timeline import timeline
from attlas.cli.common import Output, done, open_workspace
from attlas.cli.inputs import load_data
from attlas.data.checkpoints import find_checkpoints
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.cli.entropy.args import Timeline


def run(args: Timeline, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    if args.checkpoints is None:
        raise ConfigError("timeline needs --checkpoints DIR, a folder of Hugging Face checkpoints")
    workspace = open_workspace(args)
    checkpoints = find_checkpoints(args.checkpoints, args.final_step)
    used: list[Any] = []

    def data(model: Any) -> Any:
        used.append(load_data(model, args, args.config.seed))
        return used[0]

    result = timeline(checkpoints, data, args.config, track=out.track, device=args.device)
    saved = result.save(workspace, data=used[0].ref)
    rows = [(f"{b.layer}.{b.head}", b.after, b.by, b.score, b.null) for b in result.births()]
    shown = ["head", "after step", "by step", "score at the end", "null"]
    out.table("induction heads: the score stays above its null from then on", shown, rows)
    return done(saved, workspace, result.summary(), out)
