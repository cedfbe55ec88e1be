"""Tables to take along: every table of the workspace as CSV, whole, whatever its length."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import flask

from attlas.dashboard.page import Data
from attlas.dashboard.reader import WorkspaceReader
from attlas.data.workspace import Run
from attlas.errors import AttlasError

_BLOCK = 5_000  # rows written at once


def tables_of(reader: WorkspaceReader, data: Data) -> dict[str, list[str]]:
    """run → its tables, of every run that a page's data names, in their order there."""
    if not data:  # a page that could not be made
        return {}
    runs = {run.id: run for run in reader.runs()}
    return {id: sorted(runs[id].tables) for id in _named(data, runs, {}) if runs[id].tables}


def _named(value: Any, runs: dict[str, Run], found: dict[str, None]) -> dict[str, None]:
    """Ids of runs among the strings of the data's first levels (lists of rows name other runs to choose from)."""
    for item in value.values() if isinstance(value, dict) else ():
        if isinstance(item, str) and item in runs:
            found[item] = None
        elif isinstance(item, dict):
            _named(item, runs, found)
    return found


def serve_tables(server: flask.Flask, reader: WorkspaceReader) -> None:
    """`/table/<run>/<table>.csv`."""

    @server.get("/table/<run_id>/<table>.csv")
    def whole_table(run_id: str, table: str) -> flask.Response:
        try:
            run = next((r for r in reader.runs() if r.id == run_id), None)
            path = reader.table_file(run, table)
        except AttlasError as error:
            return _refused(str(error), 400)
        if path is None:
            return _refused(f"there is no table '{table[:60]}' of a run '{run_id[:80]}' in this workspace", 404)
        name = f"{run_id}-{table}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return flask.Response(_lines(reader, str(path)), mimetype="text/csv", headers=headers)


def _refused(why: str, status: int) -> flask.Response:
    return flask.Response(json.dumps({"error": why}), status=status, mimetype="application/json")


def _lines(reader: WorkspaceReader, path: str) -> Iterator[str]:
    """Header and rows; lists as JSON."""
    with reader.cursor() as cursor:
        cursor.execute("SELECT * FROM read_parquet(?)", [path])
        rows: list[tuple[Any, ...]] = [tuple(d[0] for d in cursor.description or ())]
        while rows:
            text = io.StringIO()
            csv.writer(text, lineterminator="\r\n").writerows([_cell(v) for v in row] for row in rows)
            yield text.getvalue()
            rows = cursor.fetchmany(_BLOCK)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value
