"""`attlas circuit`: patch, attribute and trace circuits through heads and features."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import subcommand

from attlas.cli.circuit.args import Ablate, Dla, Patch, Qk, Tasks, Trace
from attlas.cli.common import Output, sub_verb_module

Args = (
    Annotated[Tasks, subcommand("tasks")]
    | Annotated[Patch, subcommand("patch")]
    | Annotated[Dla, subcommand("dla")]
    | Annotated[Trace, subcommand("trace")]
    | Annotated[Qk, subcommand("qk")]
    | Annotated[Ablate, subcommand("ablate")]
)
DEFAULT_ARGV = ["tasks"]


def run(args: Tasks | Patch | Dla | Trace | Qk | Ablate, out: Output) -> dict[str, Any]:
    """Do what the sub-verb says."""
    found: dict[str, Any] = sub_verb_module("circuit", args).run(args, out)
    return found
