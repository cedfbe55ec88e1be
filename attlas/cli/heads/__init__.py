"""`attlas heads`: every head of a model over a whole corpus."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import subcommand

from attlas.cli.common import Output, sub_verb_module
from attlas.cli.heads.args import Effects, Import, Measure, Project, Similar, Weights

Args = (
    Annotated[Measure, subcommand("measure")]
    | Annotated[Weights, subcommand("weights")]
    | Annotated[Effects, subcommand("effects")]
    | Annotated[Similar, subcommand("similar")]
    | Annotated[Project, subcommand("project")]
    | Annotated[Import, subcommand("import")]
)
SUB_VERBS = ("measure", "weights", "effects", "similar", "project", "import")
DEFAULT_ARGV = ["measure"]


def run(args: Measure | Weights | Effects | Similar | Project | Import, out: Output) -> dict[str, Any]:
    """Do what the sub-verb says."""
    found: dict[str, Any] = sub_verb_module("heads", args).run(args, out)
    return found
