"""`attlas features`: what a sparse autoencoder's features do, whose heads' they are, and what another makes of them."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

from tyro.conf import subcommand

from attlas.cli.common import Output
from attlas.cli.features.args import Describe, Match, Survey

Args = (
    Annotated[Describe, subcommand("describe")]
    | Annotated[Survey, subcommand("survey")]
    | Annotated[Match, subcommand("match")]
)
SUB_VERBS = ("describe", "survey", "match")
DEFAULT_ARGV = ["describe"]


def run(args: Describe | Survey | Match, out: Output) -> dict[str, Any]:
    """Do what the sub-verb says."""
    found: dict[str, Any] = importlib.import_module(f"attlas.cli.features.{type(args).__name__.lower()}").run(args, out)
    return found
