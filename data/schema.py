"""Table schemas: every column of a workspace table has a type, a unit and a description.

The three travel inside the Parquet file as field metadata, so a table explains itself wherever it is opened, and
`docs/workspace.md` is generated from the same objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from attlas.errors import WorkspaceError


def column(name: str, type_: pa.DataType, unit: str, description: str) -> pa.Field:
    """A column with its unit ("" for none, "nats", "fraction", "tokens", "px" …) and one-line description."""
    return pa.field(name, type_, metadata={"unit": unit, "description": description})


@dataclass(frozen=True)
class TableSchema:
    """One table of a workspace: its file name without `.parquet`, what a row is, and its columns.

    Attributes:
        only: when a run has the table, as in "where it was healed"; "" where every run of its kind has it.
    """

    name: str
    row: str
    columns: tuple[pa.Field, ...]
    only: str = ""

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema(self.columns, metadata={"table": self.name, "row": self.row})

    def table(self, data: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> pa.Table:
        """Build an Arrow table from columns or from rows, checked against the schema.

        Raises:
            WorkspaceError: a column is missing or unknown, or a value does not fit its type.
        """
        if not isinstance(data, Mapping):
            rows = list(data)
            data = {f.name: [row[f.name] for row in rows] for f in self.columns}
        names = [f.name for f in self.columns]
        if set(data) != set(names):
            odd = sorted(set(data) ^ set(names))
            raise WorkspaceError(f"table '{self.name}': columns {odd} are missing or unknown; it has {names}")
        try:
            arrays = [pa.array(data[f.name], type=f.type) for f in self.columns]
            return pa.Table.from_arrays(arrays, schema=self.arrow)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise WorkspaceError(f"table '{self.name}': {str(error).splitlines()[0]}") from error
