"""`attlas models list`: the catalogue, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output
from attlas.data.models_catalog import catalog

if TYPE_CHECKING:
    from attlas.cli.models import List


def run(args: List, out: Output) -> dict[str, Any]:
    """List."""
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
