"""A column is declared once: tables share the object, and one name means one thing unless it is listed here."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa
import pytest

from attlas.analyses.common import columns
from attlas.analyses.registry import TABLES
from attlas.data.schema import TableSchema, column

# Name → how many meanings it has, each the table's own: a value's unit, an interval's kind, where a layer index may be −1.
# A table with another one raises the number here, on purpose; most should take the column of analyses/common/columns.py.
MEANINGS: dict[str, int] = {
    "ablation": 2, "accuracy": 2, "after": 2, "attention": 2, "before": 2, "bin_left": 2, "bin_right": 2, "column": 2,
    "cosine": 2, "count": 2, "coverage": 2, "dead_fraction": 2, "delta": 6, "duplicate_token": 2, "effect": 2,
    "entropy": 4, "excess": 2, "explained_variance": 2, "feature": 5, "gain": 2, "gain_high": 2, "gain_low": 2,
    "head": 5, "high": 20, "hook": 4, "induction": 5, "induction_null": 2, "influence": 2, "k": 3, "kept": 2,
    "kind": 4, "l0": 2, "label": 3, "layer": 10, "learning_rate": 2, "local": 2, "loss": 8, "low": 21,
    "lower_bound": 2, "mass": 5, "max_weight": 2, "method": 3, "metric": 7, "module": 2, "n_dropped": 2, "n_heads": 2,
    "n_maps": 3, "n_queries": 3, "n_seeds": 2, "n_sequences": 4, "n_tokens": 4, "n_units": 2, "name": 2,
    "normalized": 3, "order": 4, "place": 3, "position": 5, "previous_token": 2, "q05": 2, "q25": 2, "q50": 2,
    "q75": 2, "q95": 2, "rank": 5, "right": 2, "role": 2, "row": 2, "sae": 2, "score": 2, "seconds": 2, "seed": 2,
    "selector": 2, "self": 2, "share": 8, "sink_mass": 2, "step": 5, "subject": 2, "target": 2, "test": 2, "token": 3,
    "tokens": 3, "unit": 2, "value": 8, "weight": 2,
}  # fmt: skip


def _ways(tables: dict[str, tuple[TableSchema, ...]]) -> dict[str, dict[tuple[str, ...], list[pa.Field]]]:
    """Name of a column → (type, unit, description) → the objects that declare it so."""
    found: dict[str, dict[tuple[str, ...], list[pa.Field]]] = defaultdict(lambda: defaultdict(list))
    for schema in {id(s): s for schemas in tables.values() for s in schemas}.values():
        for field in schema.columns:
            said = (str(field.type), *(field.metadata[key].decode() for key in (b"unit", b"description")))
            found[field.name][said].append(field)
    return found


def _twice(tables: dict[str, tuple[TableSchema, ...]]) -> list[str]:
    """Columns that two declarations say alike."""
    return [
        f"{name}: {said}"
        for name, ways in _ways(tables).items()
        for said, fields in ways.items()
        if len({id(field) for field in fields}) > 1
    ]


def test_no_column_is_declared_twice() -> None:
    assert _twice(TABLES) == [], "declare it in analyses/common/columns.py"


def test_a_second_declaration_is_found() -> None:
    again = TableSchema("again", "a head", (column("head", pa.int16(), "", "head index, from 0"),))
    assert _twice({**TABLES, "again": (again,)}) == ["head: ('int16', '', 'head index, from 0')"]


def test_one_name_means_one_thing() -> None:
    several = {name: len(ways) for name, ways in _ways(TABLES).items()}
    assert {name: n for name, n in several.items() if n > MEANINGS.get(name, 1)} == {}


@pytest.mark.parametrize("name", sorted(n for n, value in vars(columns).items() if isinstance(value, pa.Field)))
def test_common_columns_are_shared(name: str) -> None:
    field: Any = getattr(columns, name)
    users = [s.name for schemas in TABLES.values() for s in schemas if any(c is field for c in s.columns)]
    assert len(users) > 1, f"{name} is used by {users} alone"
