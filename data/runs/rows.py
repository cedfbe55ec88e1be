"""Some rows of a large table, without reading the rest of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_GROUP_BYTES = 8 << 20


def rows_per_group(table: pa.Table) -> int:
    """Rows of a row group: 32,768, fewer where rows hold lists, so that a group stays near 8 MiB and can be read alone."""
    a_row = max(1, table.nbytes // max(1, table.num_rows))
    return max(16, min(32_768, _GROUP_BYTES // a_row))


def read_where(path: Path, equal: Mapping[str, int], columns: Sequence[str] | None = None) -> pa.Table:
    """Rows whose whole-number columns equal these values.

    Of a table that is sorted by them, only the row groups that hold such rows are read; each page read is checked against
    its checksum.

    Args:
        equal: column → value.
        columns: to return; all of them by default.

    Raises:
        ArrowException, OSError: the file cannot be read, or a page of it is damaged.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        wanted = list(columns or file.schema_arrow.names)
        leaves = {name: _leaf(file, name) for name in equal}
        groups = [n for n in range(file.num_row_groups) if _may_hold(file.metadata.row_group(n), leaves, equal)]
        read = file.read_row_groups(groups, columns=list(dict.fromkeys([*wanted, *equal])))
    tests = [pc.equal(read[name], value) for name, value in equal.items()]
    return (read.filter(reduce(pc.and_, tests)) if tests else read).select(wanted)


def _leaf(file: pq.ParquetFile, name: str) -> int:
    """Number of a column among the file's leaves (a list column is a leaf of another name)."""
    schema = file.schema
    return next(n for n in range(len(schema)) if schema.column(n).path == name)


def _may_hold(group: Any, leaves: Mapping[str, int], equal: Mapping[str, int]) -> bool:
    for name, leaf in leaves.items():
        seen = group.column(leaf).statistics
        if seen is not None and seen.has_min_max and not seen.min <= equal[name] <= seen.max:
            return False
    return True
