"""`attlas notes`: what people wrote about features and heads, on the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from attlas.cli.common import Output
from attlas.cli.options import OutArgs
from attlas.data.files import write_text_atomic
from attlas.data.notes import NoteBook
from attlas.errors import ConfigError


@dataclass(frozen=True)
class List(OutArgs):
    """List the notes of a workspace, the newest first.

    For example:

        attlas notes --workspace workspace
        attlas notes list --kind head --starred
    """

    kind: str = ""
    """Only of "feature" or "head"."""
    starred: bool = False
    """Only those with a star."""


@dataclass(frozen=True, kw_only=True)
class Write(OutArgs):
    """Write about a feature or a head; what is not named stays as it is.

    For example:

        attlas notes write head/gpt2-mini/3.0 --label "induction" --star True
        attlas notes write feature/SAE-RUN/746 --comment "fires on names" --tags names check
    """

    subject: Annotated[str, tyro.conf.Positional]
    """feature/SAE-RUN/746 or head/MODEL/3.0."""
    label: str | None = None
    """A name, at most 200 characters."""
    star: bool | None = None
    """One to come back to."""
    tags: tuple[str, ...] | None = None
    """Single words; they take the place of those there."""
    comment: str | None = None
    """At most 10,000 characters."""
    undo: bool = False
    """Take the last change of the subject back instead."""


@dataclass(frozen=True, kw_only=True)
class Export(OutArgs):
    """Write every note into a JSON file, for another workspace or a colleague.

    For example:

        attlas notes export --to notes.json --workspace workspace
    """

    to: Path
    """The file."""


@dataclass(frozen=True, kw_only=True)
class Import(OutArgs):
    """Write the notes of a JSON file over those here (each can be undone).

    For example:

        attlas notes import notes.json --workspace workspace
    """

    file: Annotated[Path, tyro.conf.Positional]
    """What `attlas notes export` wrote."""


Args = (
    Annotated[List, subcommand("list")]
    | Annotated[Write, subcommand("write")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Import, subcommand("import")]
)
SUB_VERBS = ("list", "write", "export", "import")
DEFAULT_ARGV = ["list"]


def run(args: List | Write | Export | Import, out: Output) -> dict[str, Any]:
    """Read or write the workspace's notes."""
    book = NoteBook(args.workspace)
    if isinstance(args, Write):
        given = {name: getattr(args, name) for name in ("label", "star", "tags", "comment")}
        changes = {name: value for name, value in given.items() if value is not None}
        changes |= {"author": "person"} if "label" in changes else {}
        note = book.undo(args.subject) if args.undo else book.write(args.subject, **changes)
        out.say(f"{note.subject}: {'★ ' if note.star else ''}{note.label or '(no label)'}")
        return asdict(note)
    if isinstance(args, Export):
        write_text_atomic(args.to, book.to_json())
        out.say(f"{len(book.all())} notes in {args.to}")
        return {"notes": len(book.all()), "file": str(args.to)}
    if isinstance(args, Import):
        n = book.from_json(_text(args.file))
        out.say(f"{n} notes written")
        return {"notes": n}
    notes = [n for n in book.all(args.kind or None) if n.star or not args.starred]
    rows = [("★" if n.star else "", n.subject, n.label, " ".join(n.tags), n.comment[:60]) for n in notes]
    out.table(f"{len(notes)} notes of {args.workspace}", ["", "about", "label", "tags", "comment"], rows)
    return {"notes": [asdict(n) for n in notes]}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the notes in '{file}' cannot be read ({error}); give a file of `attlas notes export`"
        ) from error
