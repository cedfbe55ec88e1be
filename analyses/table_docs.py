"""`python -m attlas.analyses.table_docs FILE`: write the tables' part of docs/workspace.md from the schemas themselves."""

from __future__ import annotations

import sys
from pathlib import Path

from attlas.data.files import write_text_atomic
from attlas.data.schema import TableSchema

MARK = "<!-- Below this line: written by `make docs` from the schemas in the code. -->"


def table_section(schema: TableSchema) -> str:
    """One table as Markdown: what a row is, then its columns with types and units."""
    lines = [
        f"### `{schema.name}`",
        "",
        f"A row: {schema.row}." + (f" Only {schema.only}." if schema.only else ""),
        "",
        "| column | type | unit | what it is |",
        "|---|---|---|---|",
    ]
    for field in schema.columns:
        meta = {key.decode(): value.decode() for key, value in field.metadata.items()}
        cells = (f"`{field.name}`", str(field.type), meta["unit"], meta["description"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def document() -> str:
    """All kinds of run, in the registry's order."""
    from attlas.analyses.registry import TABLES

    parts = []
    for kind, schemas in TABLES.items():
        parts += [f"## Runs of kind `{kind}`", *[table_section(schema) for schema in schemas]]
    return "\n\n".join(parts) + "\n"


def updated(text: str) -> str:
    """The page with its tables' part written anew."""
    return text.split(MARK)[0].rstrip() + f"\n\n{MARK}\n\n{document()}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    write_text_atomic(page, updated(page.read_text(encoding="utf-8")))
