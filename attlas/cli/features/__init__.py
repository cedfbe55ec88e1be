"""`attlas features`: what a sparse autoencoder's features do, whose heads' they are, and what another makes of them."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import subcommand

from attlas.cli.common import Output, sub_verb_module
from attlas.cli.features.args import Describe, Firing, Match, Survey

Args = (
    Annotated[Describe, subcommand("describe")]
    | Annotated[Survey, subcommand("survey")]
    | Annotated[Match, subcommand("match")]
    | Annotated[Firing, subcommand("firing")]
)
SUB_VERBS = ("describe", "survey", "match", "firing")
DEFAULT_ARGV = ["describe"]


def run(args: Describe | Survey | Match | Firing, out: Output) -> dict[str, Any]:
    """Do what the sub-verb says."""
    found: dict[str, Any] = sub_verb_module("features", args).run(args, out)
    return found
