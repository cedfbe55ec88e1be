"""`attlas heads`: every head of a model over a whole corpus."""

from __future__ import annotations

from typing import Any

from attlas.cli.common import Output, sub_verb_module
from attlas.cli.heads.args import Measure

Args = Measure


def run(args: Measure, out: Output) -> dict[str, Any]:
    """Do what the sub-verb says."""
    found: dict[str, Any] = sub_verb_module("heads", args).run(args, out)
    return found
