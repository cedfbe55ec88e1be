"""A workspace killed at any rename opens with the whole old run or the whole new one, and collects what was left."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from attlas.data.schema import TableSchema, column
from attlas.data.workspace import Ref, Workspace, in_workspace
from attlas.errors import WorkspaceError

MODEL = Ref("m", "0" * 16)
SCHEMA = TableSchema("t", "one row", (column("x", pa.int32(), "", "a number"),))


def killed_at(point: int, path: Path) -> int:
    """Write value 2 in a child that kills itself before or after its n-th rename; its exit status."""
    child = os.fork()
    if child == 0:
        left = [point]

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **more: Any) -> Any:
                for step in (lambda: None, lambda: call(*args, **more)):
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                    done = step()
                return done

            return wrapped

        os.rename, os.replace, shutil.rmtree = deadly(os.rename), deadly(os.replace), deadly(shutil.rmtree)
        write(path, 2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write(path: Path, value: int) -> str:
    with Workspace(path).begin("job", model=MODEL, config={"same": 1}) as run:
        run.table("t", SCHEMA.table({"x": [value] * 3}))
        run.arrays("a", {"w": np.full(4, value)})
        run.write("extra/note.txt", lambda p: p.write_text(str(value)))
        run.summary = {"value": value}
    return run.id


def seen(path: Path) -> int:
    """The value that table, array, file and summary agree on."""
    workspace = Workspace(path)
    (run,) = workspace.runs()
    values = {
        *workspace.read_table(run, "t").column("x").to_pylist(),
        *workspace.read_arrays(run, "a")["w"].tolist(),
        int(workspace.file(run, "extra/note.txt").read_text()),
        run.summary["value"],
    }
    (value,) = values
    return value


def settle(path: Path) -> list[str]:
    """Names under runs/ after a later write, the leftovers being old."""
    for left in (path / "runs").iterdir():
        os.utime(left, (1, 1))
    with Workspace(path).begin("other", model=MODEL):
        pass
    Workspace(path).remove(Workspace(path).runs("other")[0])
    return sorted(p.name for p in (path / "runs").iterdir())


def test_killed_at_every_rename(tmp_path: Path) -> None:
    first = tmp_path / "first"
    write(first, 1)
    values, point = [], 0
    while True:
        path = tmp_path / f"at-{point}"
        shutil.copytree(first, path)
        status = killed_at(point, path)
        values.append(seen(path))
        (run,) = Workspace(path).runs()
        assert settle(path) == [run.folder]
        assert seen(path) == values[-1]
        if status == 0:
            break
        assert status == -signal.SIGKILL
        point += 1
    assert values == sorted(values)  # old up to one point, new from there on
    assert (values[0], values[-1]) == (1, 2)
    assert len(values) >= 8  # before and after: the folder's rename, the manifest's, and those that clean up


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    with workspace.begin("job", model=MODEL) as run:
        run.table("t", SCHEMA.table({"x": [5]}))
        (hidden,) = (tmp_path / "w" / "runs").iterdir()
        os.utime(hidden, (1, 1))
        write(tmp_path / "w", 1)
        assert hidden.is_dir()
    assert workspace.read_table(run.record, "t").num_rows == 1


def test_a_replaced_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    run_id = write(tmp_path / "w", 1)
    before = Workspace(tmp_path / "w").run(run_id)
    for value in (2, 3):
        assert write(tmp_path / "w", value) == run_id
    workspace = Workspace(tmp_path / "w")
    assert workspace.run(run_id).folder == f"{run_id}.3"
    assert workspace.read_table(before, "t").column("x").to_pylist() == [
        3,
        3,
        3,
    ]  # an entry read before still leads there
    assert in_workspace(tmp_path / "w" / "runs" / run_id) == workspace.folder(run_id)
    workspace.remove(run_id)
    assert not list((tmp_path / "w" / "runs").iterdir())


def test_the_schema_before_opens(tmp_path: Path) -> None:
    """A folder is the id, and no hashes are kept."""
    run_id = write(tmp_path / "w", 1)
    manifest = tmp_path / "w" / "manifest.json"
    old = json.loads(manifest.read_text())
    old["schema_version"] = 1
    for entry in old["runs"]:
        del entry["folder"], entry["files"]
    manifest.write_text(json.dumps(old))
    assert seen(tmp_path / "w") == 1
    assert write(tmp_path / "w", 2) == run_id
    assert seen(tmp_path / "w") == 2


@pytest.mark.parametrize("name", ["../../victim", "/etc", "..", ".new-x", "", "a/b", "a\\b", "x" * 300, "a\0b"])
def test_no_name_leads_out_of_the_workspace(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "letter.txt").write_text("dear")
    run_id = write(tmp_path / "w", 1)
    workspace = Workspace(tmp_path / "w")
    for refused in (
        lambda: workspace.remove(name),
        lambda: workspace.folder(name),
        lambda: workspace.table_path(run_id, name),
        lambda: workspace.read_arrays(run_id, name),
        lambda: workspace.file(run_id, f"extra/{name}"),
        lambda: _write_named(workspace, name),
    ):
        with pytest.raises(WorkspaceError):
            refused()
    assert (victim / "letter.txt").read_text() == "dear"
    assert seen(tmp_path / "w") == 1


def _write_named(workspace: Workspace, name: str) -> None:
    with workspace.begin("other", model=MODEL) as run:
        run.table(name, SCHEMA.table({"x": [1]}))


def test_model_names_make_plain_ids(tmp_path: Path) -> None:
    for i, name in enumerate(("../../victim", "a" * 400, "", "模型", "..", "x/y z")):
        with Workspace(tmp_path / "w").begin("job", model=Ref(name, str(i))) as run:
            run.table("t", SCHEMA.table({"x": [1]}))
        assert (tmp_path / "w" / "runs" / run.id / "t.parquet").is_file()


def test_remove_takes_the_link_alone(tmp_path: Path) -> None:
    run_id = write(tmp_path / "w", 1)
    folder = tmp_path / "w" / "runs" / run_id
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert seen(tmp_path / "w") == 1
    Workspace(tmp_path / "w").remove(run_id)
    assert not folder.is_symlink()
    assert (tmp_path / "elsewhere" / "t.parquet").is_file()
