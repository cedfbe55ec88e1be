"""`attlas prune`: drop modules, measure what it costs, export a smaller checkpoint."""

from __future__ import annotations

from typing import Any

from attlas.cli.common import Output
from attlas.cli.prune.args import Args


def run(args: Args, out: Output) -> dict[str, Any]:
    """Do it, with what a help text need not wait for."""
    from attlas.cli.prune import work

    return work.run(args, out)
