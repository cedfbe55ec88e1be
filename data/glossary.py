"""The glossary: every term of the field that Attlas prints or draws, defined once in glossary.toml.

`docs/glossary.md` is written from it (`python -m attlas.data.glossary FILE`, part of `make docs`), and the headings of
the dashboard's tables show the same sentences as tooltips.
"""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attlas.data.files import write_text_atomic

_FILE = Path(__file__).with_name("glossary.toml")
_HEAD = """# Glossary

Each term once, with its symbol, unit and source. Tables in the browser show the same sentences over their headings.
Written by `make docs` from `data/glossary.toml`.
"""


@dataclass(frozen=True)
class Term:
    """A term with what it is counted in, and the columns of tables that it explains wherever they stand."""

    name: str
    meaning: str
    symbol: str = ""
    unit: str = ""
    source: str = ""
    columns: tuple[str, ...] = ()

    @property
    def tooltip(self) -> str:
        """One line: the meaning, with the unit where there is one."""
        return f"{self.meaning} [{self.unit}]" if self.unit else self.meaning


@cache
def sections() -> dict[str, tuple[Term, ...]]:
    """Title of a section -> its terms, in the file's order."""
    found = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return {
        title: tuple(Term(**row | {"columns": tuple(row.get("columns", ()))}) for row in rows)
        for title, rows in found.items()
    }


@cache
def _by_column() -> dict[str, Term]:
    return {column: term for terms in sections().values() for term in terms for column in term.columns}


def tooltip(column: str) -> str:
    """The glossary's sentence for a column of that name, "" where it has none.

    >>> tooltip("l0")
    'Features with an activation above 0, mean over tokens. [features]'
    """
    term = _by_column().get(column)
    return term.tooltip if term else ""


def document() -> str:
    """The text of docs/glossary.md."""
    parts = [_HEAD]
    for title, terms in sections().items():
        parts.append(f"## {title}\n\n| term | symbol | unit | meaning | source |\n|---|---|---|---|---|")
        for term in terms:
            cells = (f"**{term.name}**", term.symbol, term.unit, term.meaning, term.source)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    write_text_atomic(Path(sys.argv[1]), document())
