"""Every question the pages ask of a workspace, answered by DuckDB.

Paths come from the manifest alone: a run id in a URL is looked up there before any file is touched. Values are always
bound as parameters, and column names are checked against the table's own before they enter a statement.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np

from attlas.dashboard.cuts import are_noted, note
from attlas.dashboard.feature_filter import FeatureFilter, tests
from attlas.dashboard.jobs import JobQueue
from attlas.data.workspace import Run, Workspace
from attlas.errors import WorkspaceError

Row = dict[str, Any]
T = TypeVar("T")
_KEPT_IN_MEMORY = 3
_KEPT_ANSWERS = 24
_MOST_ROWS = 20_000  # a page reads of one table, when it does not say otherwise
_POINTS = 400  # of a curve: more than a figure has pixels for
_EVERY = FeatureFilter()
_AS_THEY_ARE = {int, str, bool, type(None)}


def clean(value: Any) -> Any:
    """Plain JSON values: numpy to Python, NaN and infinity to None."""
    if type(value) in _AS_THEY_ARE:  # most of the hundreds of thousands of values of a page
        return value
    if type(value) is float:
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "iub":  # never NaN; millions of them may come
            return value.tolist()
        return [clean(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return value


@contextmanager
def _unreadable() -> Iterator[None]:
    """DuckDB's errors as one line."""
    try:
        yield
    except duckdb.Error as error:
        line = str(error).strip().splitlines()[0][:200]
        raise WorkspaceError(f"a table cannot be read ({line}); run the job that wrote it again") from error


class WorkspaceReader:
    """A workspace, opened for reading.

    Args:
        path: the workspace folder; it may not exist yet.
        models: name → folder, of models to work on that are neither embedded nor fetched.
    """

    def __init__(self, path: str | Path, models: Mapping[str, str] | None = None) -> None:
        self.workspace = Workspace(path)
        self.jobs = JobQueue(models)
        self._db = duckdb.connect(
            ":memory:", config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        )
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, int], str] = {}
        self._kept: dict[Hashable, Any] = {}
        self._serial = 0

    @property
    def path(self) -> Path:
        return self.workspace.path

    def kept(self, path: Path | None, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned before for this file, as it is now, and this key; the last of them are kept."""
        stamp = path.stat().st_mtime_ns if path is not None and path.exists() else None
        whole = (str(path), stamp, key)
        with self._lock:
            if whole in self._kept:
                self._kept[whole] = found = self._kept.pop(whole)
                return found
        made = make()
        with self._lock:
            self._kept[whole] = made
            while len(self._kept) > _KEPT_ANSWERS:
                del self._kept[next(iter(self._kept))]
        return made

    # -- runs ------------------------------------------------------------------------------------------------------

    def runs(self, kind: str | None = None, model: str | None = None) -> list[Run]:
        """Runs, newest first."""
        return self.workspace.runs(kind, model=model)

    def models(self) -> list[str]:
        """Names of the models any run is about, in order of first appearance from the newest."""
        try:
            return list(dict.fromkeys(run.model.name for run in self.runs()))
        except WorkspaceError:  # the page itself says so
            return []

    def pick(self, kind: str, run_id: str | None = None, model: str | None = None) -> Run | None:
        """The run named in the URL when it is of this kind; else one made from it, or it from; else the newest of the model."""
        runs = self.runs(kind)
        if not runs:
            return None
        if run_id is not None:
            same = next((run for run in runs if run.id == run_id), None)
            other = None if same else next((run for run in self.runs() if run.id == run_id), None)
            kin = (
                None if other is None else next((r for r in runs if run_id in r.parents or r.id in other.parents), None)
            )
            if same or kin:
                return same or kin
            model = other.model.name if other is not None else model
        return next((run for run in runs if run.model.name == model), None if model else runs[0])

    def made_from(self, run: Run, *kinds: str) -> Run | None:
        """What a run was made from, of the first of these kinds that is among its parents."""
        return next((r for kind in kinds for r in self.runs(kind) if r.id in run.parents), None)

    def features_run(self, sae: str | None) -> Run | None:
        """The newest run that tells of the features of an autoencoder, by the id of its run."""
        return next((run for run in self.runs("features") if sae is not None and sae in run.parents), None)

    # -- tables ----------------------------------------------------------------------------------------------------

    def table_file(self, run: Run | None, table: str) -> Path | None:
        """The Parquet file, whole as it was written, or None when the run has no such table.

        Raises:
            WorkspaceError: it is damaged.
        """
        return None if run is None or table not in run.tables else self.workspace.table_path(run, table)

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor of its own; DuckDB's errors as WorkspaceError."""
        with self._db.cursor() as cursor, _unreadable():
            yield cursor

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run one statement on a cursor of its own, so that requests may run at once.

        Raises:
            WorkspaceError: DuckDB cannot read a file; which.
        """
        with self.cursor() as cursor:
            cursor.execute(sql, list(parameters))
            names = [d[0] for d in cursor.description or ()]
            return [{n: clean(v) for n, v in zip(names, row, strict=True)} for row in cursor.fetchall()]

    def columns(self, run: Run | None, table: str) -> list[str]:
        """Column names, empty when there is no such table."""
        path = self.table_file(run, table)
        if path is None:
            return []
        return [r["column_name"] for r in self.query("DESCRIBE SELECT * FROM read_parquet(?)", [str(path)])]

    def rows(
        self,
        run: Run | None,
        table: str,
        order: Sequence[str] = (),
        limit: int | None = None,
        **equal: Any,
    ) -> list[Row]:
        """Rows whose columns equal the given values, ordered by those `order` columns that exist.

        Args:
            limit: how many are wanted; None: all, of which a page takes 20,000 and says what it left out (see `cuts`).
        """
        path = self.table_file(run, table)
        there = self.columns(run, table)
        if path is None or not set(equal) <= set(there):
            return []
        where = " AND ".join(f'"{name}" = ?' for name in equal) or "true"
        by = ", ".join(f'"{name}"' for name in order if name in there)
        tail = f"FROM read_parquet(?) WHERE {where}"
        values = [str(path), *equal.values()]
        sql = f"SELECT * {tail} {'ORDER BY ' + by if by else ''} LIMIT ?"
        found = self.query(sql, [*values, _MOST_ROWS if limit is None else limit])
        if limit is None and len(found) == _MOST_ROWS and are_noted():
            note(table, len(found), self.query(f"SELECT count(*) AS n {tail}", values)[0]["n"])
        return found

    def curves(
        self,
        run: Run | None,
        table: str,
        x: str,
        lines: Sequence[str],
        values: Sequence[str] = (),
        points: int = _POINTS,
    ) -> list[Row]:
        """Rows of a table of curves, at most about `points` a line, evenly spaced, the first and last of each among them.

        Args:
            lines: columns that tell the lines apart (those there are of them).
        """
        path = self.table_file(run, table)
        there = self.columns(run, table)
        if path is None or x not in there:
            return []
        by = ", ".join(f'"{name}"' for name in lines if name in there) or "1"
        inner = (
            f'SELECT *, row_number() OVER (PARTITION BY {by} ORDER BY "{x}") - 1 AS _i, '
            f"count(*) OVER (PARTITION BY {by}) AS _n FROM read_parquet(?)"
        )
        keep = "_i % greatest(1, ceil(_n / ?)::BIGINT) = 0 OR _i = _n - 1"
        return self.query(
            f'SELECT * EXCLUDE (_i, _n) FROM ({inner}) WHERE {keep} ORDER BY {by}, "{x}"', [str(path), points]
        )

    def arrays(self, run: Run | None, name: str) -> dict[str, np.ndarray]:
        """Arrays of a run, empty when it has none of that name."""
        return {} if run is None or name not in run.arrays else self.workspace.read_arrays(run, name)

    def texts(self, run: Run | None, sequences: Sequence[int]) -> dict[int, list[str]]:
        """Tokens of some sequences of a run of `heads`, by number."""
        path = self.table_file(run, "head_texts")
        if path is None or not sequences:
            return {}
        sql = "SELECT sequence, tokens FROM read_parquet(?) WHERE list_contains(?, sequence)"
        return {row["sequence"]: row["tokens"] for row in self.query(sql, [str(path), list(sequences)])}

    # -- features --------------------------------------------------------------------------------------------------

    def _in_memory(self, path: Path, columns: Sequence[str]) -> str:
        """Name of an in-memory copy of a features table: sorting 10^6 rows is then a matter of milliseconds."""
        key = (str(path), path.stat().st_mtime_ns)
        with self._lock:
            if key not in self._loaded:
                text = [c for c in ("top_tokens", "promoted") if c in columns]
                haystack = f"lower(concat_ws(' ', {', '.join(text)}))" if text else "''"
                self._serial += 1
                name = f"features_{self._serial}"
                with _unreadable():
                    self._db.execute(
                        f"CREATE TABLE {name} AS SELECT *, {haystack} AS _search FROM read_parquet(?)", [str(path)]
                    )
                while len(self._loaded) >= _KEPT_IN_MEMORY:
                    self._db.execute(f"DROP TABLE {self._loaded.pop(next(iter(self._loaded)))}")
                self._loaded[key] = name
            return self._loaded[key]

    def _features(self, run: Run | None, chosen: FeatureFilter) -> tuple[str, str, list[Any], list[str]] | None:
        """(table name, where clause, its parameters, columns), or None without a features table."""
        path = self.table_file(run, "features")
        if path is None:
            return None
        columns = self.columns(run, "features")
        words = self.table_file(run, "example_words")
        used = tests(chosen, columns, None if words is None else str(words))
        where = " AND ".join(sql for sql, _ in used) or "true"
        return self._in_memory(path, columns), where, [value for _, values in used for value in values], columns

    def features_page(
        self,
        run: Run | None,
        chosen: FeatureFilter,
        sort: str = "feature",
        descending: bool = False,
        offset: int = 0,
        limit: int = 100,
    ) -> tuple[list[Row], int]:
        """One page of the features table and the number of rows that pass the filter."""
        found = self._features(run, chosen)
        if found is None:
            return [], 0
        table, where, values, columns = found
        by = sort if sort in columns else "feature"
        direction = "DESC" if descending else "ASC"
        total = self.query(f"SELECT count(*) AS n FROM {table} WHERE {where}", values)[0]["n"]
        rows = self.query(
            f"SELECT * EXCLUDE (_search) FROM {table} WHERE {where} "
            f'ORDER BY "{by}" {direction} NULLS LAST, feature LIMIT ? OFFSET ?',
            [*values, max(0, min(limit, 1000)), max(0, min(offset, 10**12))],
        )
        return rows, total

    def density_histogram(self, run: Run | None, chosen: FeatureFilter) -> list[Row]:
        """Features a quarter decade of density; dead features are the row with bin null."""
        found = self._features(run, chosen)
        if found is None or "density" not in found[3]:
            return []
        table, where, values, _ = found
        return self.query(
            "SELECT CASE WHEN density > 0 THEN floor(log10(density) * 4) / 4 END AS bin, count(*) AS count "
            f"FROM {table} WHERE {where} GROUP BY 1 ORDER BY 1 NULLS FIRST",
            values,
        )

    def choices(self, run: Run | None, column: str) -> list[Any]:
        """Distinct values of a low-cardinality column of the features table."""
        found = self._features(run, FeatureFilter())
        if found is None or column not in found[3]:
            return []
        sql = f'SELECT DISTINCT "{column}" AS value FROM {found[0]} WHERE "{column}" IS NOT NULL ORDER BY 1 LIMIT 500'
        return [row["value"] for row in self.query(sql)]

    def beside(
        self,
        run: Run | None,
        feature: int,
        chosen: FeatureFilter = _EVERY,
        sort: str = "feature",
        descending: bool = False,
        limit: int = 25,
    ) -> tuple[list[int], list[int]]:
        """Ids before and after a feature in the list of `features_page`, the nearest first; without it in the list, none."""
        found = self._features(run, chosen)
        if found is None:
            return [], []
        table, where, values, columns = found
        by = sort if sort in columns else "feature"
        at = self.query(f'SELECT "{by}" AS value FROM {table} WHERE feature = ? AND {where}', [feature, *values])
        if not at:
            return [], []
        value, direction = at[0]["value"], ("DESC", "ASC") if descending else ("ASC", "DESC")
        later = "<" if descending else ">"
        # In order: by the value, ties by the id, rows without a value at the end.
        if value is None:
            tests = (
                (f'("{by}" IS NULL AND feature > ?)', [feature]),
                (f'("{by}" IS NOT NULL OR feature < ?)', [feature]),
            )
        else:
            tie = f'("{by}" = ? AND feature {{}} ?)'
            earlier = "<" if later == ">" else ">"
            tests = (
                (f'("{by}" {later} ? OR "{by}" IS NULL OR {tie.format(">")})', [value, value, feature]),
                (f'("{by}" {earlier} ? OR {tie.format("<")})', [value, value, feature]),
            )
        sides = []
        for (test, bound), way, nulls, ids in zip(tests, direction, ("LAST", "FIRST"), ("ASC", "DESC"), strict=True):
            sql = (
                f"SELECT feature FROM {table} WHERE {where} AND {test} "
                f'ORDER BY "{by}" {way} NULLS {nulls}, feature {ids} LIMIT ?'
            )
            sides.append([row["feature"] for row in self.query(sql, [*values, *bound, limit])])
        return sides[1], sides[0]
