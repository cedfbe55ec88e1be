"""`attlas models get`: the work, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output
from attlas.data.models_fetch import get_model, verify_checksums

if TYPE_CHECKING:
    from attlas.cli.models import Get


def run(args: Get, out: Output) -> dict[str, Any]:
    """Fetch, convert, check."""
    folder = get_model(args.name, track=out.track, force=args.force)
    if args.verify and (folder / "attlas.json").is_file():
        verify_checksums(folder)
    out.say(f"{args.name} is at {folder}")
    return {"name": args.name, "path": str(folder)}
