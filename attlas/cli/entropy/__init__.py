"""`attlas entropy`: how sharply each head attends, what its maps are made of, and how that came about."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import subcommand

from attlas.cli.common import Output, sub_verb_module
from attlas.cli.entropy.args import Anatomy, Collapse, Cost, Heads, Selection, Timeline, Windows

Args = (
    Annotated[Heads, subcommand("heads")]
    | Annotated[Anatomy, subcommand("anatomy")]
    | Annotated[Timeline, subcommand("timeline")]
    | Annotated[Selection, subcommand("selection")]
    | Annotated[Windows, subcommand("windows")]
    | Annotated[Cost, subcommand("cost")]
    | Annotated[Collapse, subcommand("collapse")]
)
SUB_VERBS = ("heads", "anatomy", "timeline", "selection", "windows", "cost", "collapse")
DEFAULT_ARGV = ["heads"]
IMPLIED = {"--checkpoints": "timeline", "--revisions": "timeline"}
OLD_NAMES = {"window-loss": "windows", "collapse-demo": "collapse"}
OLD_OPTIONS = {
    "collapse": {"--demo-models": ("--models",), "--demo-steps": ("--vit-steps", "--lm-steps")},
}


def run(args: Heads | Anatomy | Timeline | Selection | Windows | Cost | Collapse, out: Output) -> dict[str, Any]:
    """Do what the sub-verb says."""
    found: dict[str, Any] = sub_verb_module("entropy", args).run(args, out)
    return found
