"""The workspace keeps its promises: whole runs or none, several writers at once, newer schemas refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from attlas.data.schema import TableSchema, column
from attlas.data.workspace import Ref, Workspace
from attlas.errors import NonFiniteError, WorkspaceError

MODEL = Ref("m", "0" * 16)
SCHEMA = TableSchema("t", "one row", (column("x", pa.int32(), "nats", "a number"),))


def _write(path: Path, seed: int, rows: int = 3) -> str:
    with Workspace(path).begin("job", model=MODEL, config={"seed": seed}, seed=seed) as run:
        run.table("t", SCHEMA.table({"x": [seed] * rows}))
        run.arrays("a", {"w": np.full(4, seed)})
        run.summary = {"seed": seed, "nan": float("nan")}
    return run.id


def _many(path: str, first: int) -> None:
    for seed in range(first, first + 12):
        _write(Path(path), seed)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run_id = _write(tmp_path / "w", 7)
    workspace = Workspace(tmp_path / "w")
    run = workspace.run(run_id)
    assert (run.kind, run.model, run.seed, run.tables, run.arrays) == ("job", MODEL, 7, ("t",), ("a",))
    assert run.created
    assert run.summary == {"seed": 7, "nan": None}  # JSON has no NaN
    table = workspace.read_table(run, "t")
    assert table.column("x").to_pylist() == [7, 7, 7]
    assert table.schema.field("x").metadata == {b"unit": b"nats", b"description": b"a number"}
    np.testing.assert_array_equal(workspace.read_arrays(run, "a")["w"], np.full(4, 7))


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, __file__, tmp_path / "w", str(first)]) for first in (0, 100, 200)]
    assert [writer.wait(240) for writer in writers] == [0, 0, 0]
    workspace = Workspace(tmp_path / "w")
    assert sorted(run.seed for run in workspace.runs()) == [
        *range(0, 12),
        *range(100, 112),
        *range(200, 212),
    ]
    for run in workspace.runs():
        assert workspace.read_table(run, "t").column("x").to_pylist() == [run.seed] * 3
    assert not [p for p in (tmp_path / "w" / "runs").iterdir() if p.name.startswith(".")]


def test_an_exception_leaves_the_workspace_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "w"
    _write(path, 1)
    before = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}

    def fail() -> None:
        with Workspace(path).begin("job", model=MODEL, config={"seed": 1}) as run:
            run.table("t", SCHEMA.table({"x": [99]}))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_equal_inputs_replace_and_are_found(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    assert _write(workspace.path, 1) == _write(workspace.path, 1, rows=5)
    assert len(workspace.runs()) == 1
    assert workspace.read_table(workspace.runs()[0], "t").num_rows == 5
    found = workspace.find("job", model=MODEL, config={"seed": 1})
    assert found is not None
    assert workspace.find("job", model=MODEL, config={"seed": 2}) is None
    assert workspace.find("job", model=Ref("m", "1" * 16), config={"seed": 1}) is None


def test_latest_and_remove(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    first, second = _write(workspace.path, 1), _write(workspace.path, 2)
    latest = workspace.latest("job")
    assert latest is not None
    assert latest.id == second
    workspace.remove(second)
    assert [run.id for run in workspace.runs()] == [first]
    assert not workspace.folder(second).exists()


def test_strange_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkspaceError, match="is a file"):
        Workspace(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("x")
    with pytest.raises(WorkspaceError, match="not a workspace"):
        Workspace(tmp_path / "photos")


def test_newer_and_broken_manifests_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "w", 1)
    manifest = tmp_path / "w" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps({"schema_version": 99, "runs": []}))
    with pytest.raises(WorkspaceError, match="99"):
        Workspace(tmp_path / "w").runs()
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(WorkspaceError):
        Workspace(tmp_path / "w").runs()


def test_absent_things_are_named(tmp_path: Path) -> None:
    run_id = _write(tmp_path / "w", 1)
    workspace = Workspace(tmp_path / "w")
    with pytest.raises(WorkspaceError, match="nothing"):
        workspace.run("nothing")
    with pytest.raises(WorkspaceError):
        workspace.read_table(run_id, "absent")
    with pytest.raises(WorkspaceError):
        workspace.read_table(run_id, "../../manifest")


def test_nothing_but_nan_is_no_result(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    good = [{"a": [nan, 1.0], "b": [nan, nan]}, {"a": [None, None]}, {"s": ["x"]}, {"a": pa.array([], pa.float64())}]
    for number, columns in enumerate(good):
        with Workspace(tmp_path / "w").begin("job", model=MODEL, config={"n": number}) as run:
            run.table("t", pa.table(columns))
    for columns in ({"i": [1, 2], "a": [nan, nan]}, {"a": [nan, None], "b": [inf, -inf]}):
        with pytest.raises(NonFiniteError, match=r"table 't' of bad-m-.* would hold NaN"):  # noqa: SIM117
            with Workspace(tmp_path / "w").begin("bad", model=MODEL) as run:
                run.table("t", pa.table(columns))
    assert {run.kind for run in Workspace(tmp_path / "w").runs()} == {"job"}


@pytest.mark.parametrize("data", [{"y": [1]}, {"x": [1], "y": [1]}, {"x": ["text"]}, {"x": [2**40]}])
def test_tables_are_checked_against_their_schema(data: dict) -> None:
    with pytest.raises(WorkspaceError, match="table 't'"):
        SCHEMA.table(data)


if __name__ == "__main__":  # one of the writers of test_two_processes_write_at_once
    _many(sys.argv[1], int(sys.argv[2]))
