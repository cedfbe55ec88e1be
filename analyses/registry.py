"""One line a table: what a workspace may hold, in the order docs/workspace.md shows it."""

from __future__ import annotations

from attlas.data.schema import TableSchema

TABLES: dict[str, tuple[TableSchema, ...]] = {}

