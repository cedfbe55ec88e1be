"""Notes in `notes.sqlite` of a workspace: any number of tabs and processes write at once, and every change can be undone.

Each change adds a row; the newest row of a subject that is not undone is its note. So nothing that was written is lost.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attlas.data.notes.subject import parse_subject
from attlas.errors import ConfigError, StorageError, WorkspaceError

FILE = "notes.sqlite"
MOST_TEXT = 10_000  # characters of a comment
MOST_LABEL = 200
_WAIT_S = 20.0  # for another process that writes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS notes (
  number INTEGER PRIMARY KEY, subject TEXT NOT NULL, label TEXT NOT NULL, star INTEGER NOT NULL, tags TEXT NOT NULL,
  comment TEXT NOT NULL, author TEXT NOT NULL, written TEXT NOT NULL, undone INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_subject ON notes (subject, undone, number);
CREATE TABLE IF NOT EXISTS groups (graph TEXT PRIMARY KEY, content TEXT NOT NULL, written TEXT NOT NULL);
"""
_NOW = "SELECT max(number) FROM notes WHERE undone = 0 GROUP BY subject"


@dataclass(frozen=True)
class Note:
    """What is written about one subject.

    Attributes:
        subject: see `attlas.data.notes.subject`.
        label: a name, at most 200 characters.
        star: one of those to come back to.
        tags: single words, sorted.
        comment: at most 10,000 characters.
        author: "person", or what wrote the label ("model" of `attlas explain`).
        written: UTC, ISO 8601; of a note not written yet "".
    """

    subject: str
    label: str = ""
    star: bool = False
    tags: tuple[str, ...] = ()
    comment: str = ""
    author: str = "person"
    written: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.label or self.star or self.tags or self.comment)


class NoteBook:
    """The notes of a workspace; the file is made by the first note.

    Args:
        workspace: the workspace's folder.

    Example:
        >>> from attlas.data.notes import NoteBook, head_subject
        >>> book = NoteBook(folder)
        >>> _ = book.write(head_subject("gpt2-mini", 3, 0), label="induction", star=True)
        >>> book.read("head/gpt2-mini/3.0").label
        'induction'
        >>> book.undo("head/gpt2-mini/3.0").label
        ''
    """

    def __init__(self, workspace: str | Path) -> None:
        self.path = Path(workspace) / FILE

    @contextmanager
    def open(self, write: bool) -> Iterator[sqlite3.Connection]:
        """A connection of this thread alone; a write holds the file's lock from its first statement."""
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)
            try:
                connection.row_factory = sqlite3.Row
                if write:
                    connection.executescript(_SCHEMA)
                    connection.execute("BEGIN IMMEDIATE")
                yield connection
                if write:
                    connection.execute("COMMIT")
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            line = str(error)
            if "malformed" in line or "not a database" in line:
                raise WorkspaceError(
                    f"the notes in '{self.path}' cannot be read ({line}); move the file away, and import a copy of them"
                ) from error
            raise StorageError(f"the notes in '{self.path}' cannot be written ({line})") from error
        except OSError as error:
            raise StorageError(f"the notes in '{self.path}' cannot be written ({error})") from error

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, subject: str) -> Note:
        """The note of a subject; an empty one where nothing is written.

        Raises:
            WorkspaceError: the file is damaged.
        """
        found = self._select("WHERE subject = ? AND undone = 0 ORDER BY number DESC LIMIT 1", [subject])
        return found[0] if found else Note(subject)

    def all(self, kind: str | None = None, of: str | None = None) -> list[Note]:
        """Every note that says something, the newest first.

        Args:
            kind: "feature" or "head".
            of: only of this autoencoder's run, or model.
        """
        start = f"{kind}/{of}/" if kind and of else f"{kind}/" if kind else ""
        where = f"WHERE number IN ({_NOW}) AND substr(subject, 1, ?) = ? ORDER BY number DESC"
        return [note for note in self._select(where, [len(start), start]) if not note.is_empty]

    def history(self, subject: str) -> list[Note]:
        """Everything that was written about a subject and not undone, the newest first."""
        return self._select("WHERE subject = ? AND undone = 0 ORDER BY number DESC", [subject])

    def _select(self, where: str, values: Sequence[Any]) -> list[Note]:
        if not self.path.exists():
            return []
        with self.open(write=False) as connection:
            return [_note(row) for row in connection.execute(f"SELECT * FROM notes {where}", values)]

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, subject: str, **changes: Any) -> Note:
        """Change what is written about a subject; what is not named stays.

        Args:
            changes: label, star, tags, comment, author.

        Raises:
            ConfigError: no such subject or field, or a text that is too long.
            StorageError: the disk refuses.
        """
        parse_subject(subject)
        with self.open(write=True) as connection:
            now = _newest(connection, subject)
            wanted = _checked(replace(now, **_known(changes)))
            if replace(wanted, author=now.author, written=now.written) == now:
                return now
            return _append(connection, wanted)

    def undo(self, subject: str) -> Note:
        """Take the last change of a subject back; what it says then."""
        with self.open(write=True) as connection:
            connection.execute(
                "UPDATE notes SET undone = 1 WHERE number = (SELECT max(number) FROM notes WHERE subject = ? AND undone = 0)",
                [subject],
            )
            return _newest(connection, subject)

    # -- as JSON ---------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Every note, for another workspace or another program."""
        rows = [
            {k: v for k, v in asdict(note).items() if k != "written"} | {"written": note.written} for note in self.all()
        ]
        return json.dumps({"attlas_notes": 1, "notes": rows}, ensure_ascii=False, indent=1) + "\n"

    def from_json(self, text: str) -> int:
        """Write the notes of `to_json` over those here; how many were written, all or none.

        Raises:
            ConfigError: it is not such a file; which row.
        """
        try:
            told = json.loads(text)
            rows = told["notes"]
            if told["attlas_notes"] != 1 or not isinstance(rows, list):
                raise ValueError("another version")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"this is no file of notes ({error}); give one that `attlas notes export` wrote"
            ) from error
        found = []
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ConfigError(f"row {i} of the notes is no object but {str(row)[:60]!r}")
            fields = {k: v for k, v in row.items() if k not in ("subject", "written")}
            parse_subject(str(row.get("subject")))
            found.append(_checked(replace(Note(str(row["subject"])), **_known(fields))))
        with self.open(write=True) as connection:
            for note in found:
                _append(connection, note)
        return len(found)


def _note(row: sqlite3.Row) -> Note:
    tags = tuple(json.loads(row["tags"]))
    return Note(row["subject"], row["label"], bool(row["star"]), tags, row["comment"], row["author"], row["written"])


def _newest(connection: sqlite3.Connection, subject: str) -> Note:
    row = connection.execute(
        "SELECT * FROM notes WHERE subject = ? AND undone = 0 ORDER BY number DESC LIMIT 1", [subject]
    ).fetchone()
    return _note(row) if row else Note(subject)


def _append(connection: sqlite3.Connection, note: Note) -> Note:
    note = replace(note, written=datetime.now(UTC).isoformat(timespec="seconds"))
    connection.execute(
        "INSERT INTO notes (subject, label, star, tags, comment, author, written) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [note.subject, note.label, int(note.star), json.dumps(note.tags), note.comment, note.author, note.written],
    )
    return note


def _known(changes: dict[str, Any]) -> dict[str, Any]:
    there = {"label", "star", "tags", "comment", "author"}
    if unknown := changes.keys() - there:
        raise ConfigError(f"a note has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(there))}")
    return changes


def _checked(note: Note) -> Note:
    """With tags as single words, each once, sorted.

    Raises:
        ConfigError: a field of another type, or too long.
    """
    texts = (note.label, note.comment, note.author)
    tags = note.tags.replace(",", " ").split() if isinstance(note.tags, str) else note.tags
    if (
        not all(isinstance(t, str) for t in texts)
        or not isinstance(tags, (list, tuple))
        or not isinstance(note.star, bool | int)
    ):
        raise ConfigError(
            f"the note on {note.subject} has a field of another type: label, comment are text, tags a list"
        )
    if (
        len(note.label) > MOST_LABEL
        or len(note.comment) > MOST_TEXT
        or len(tags) > 50
        or any(len(str(t)) > 60 for t in tags)
    ):
        limits = f"at most {MOST_LABEL} characters of label, {MOST_TEXT:,} of comment, 50 tags"
        raise ConfigError(f"the note on {note.subject} is too long: {limits}")
    words = tuple(sorted({str(t).strip().lower().lstrip("#") for t in tags} - {""}))
    return replace(note, label=" ".join(note.label.split()), star=bool(note.star), tags=words)
