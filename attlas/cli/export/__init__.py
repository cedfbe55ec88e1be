"""`attlas export`: an autoencoder, its features, or a run over heads in another program's format or as one HTML file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from tyro.conf import subcommand

from attlas.cli.common import Output, sub_verb_module
from attlas.cli.export.args import Format, Headvis, Html, Sae

Args = (
    Annotated[Sae, subcommand("sae")] | Annotated[Headvis, subcommand("headvis")] | Annotated[Html, subcommand("html")]
)
SUB_VERBS = ("sae", "headvis", "html")
DEFAULT_ARGV = ["sae"]


def as_today(argv: Sequence[str]) -> list[str]:
    """`--to` was the format once: before the name of one it still is (a folder of that name: --folder saelens)."""
    names = get_args(Format)
    words = list(argv)
    if words[:1] in (["headvis"], ["html"]):
        return words
    for at, (word, following) in enumerate(itertools.zip_longest(words, words[1:], fillvalue="")):
        option, _, value = word.partition("=")
        if option == "--to" and (value or following) in names:
            words[at] = word.replace("--to", "--format", 1)
    return words


def run(args: Sae | Headvis | Html, out: Output) -> dict[str, Any]:
    """Do what the sub-verb says."""
    found: dict[str, Any] = sub_verb_module("export", args).run(args, out)
    return found
