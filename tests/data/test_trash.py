"""Runs put away are off the list, keep their files, and come back equal; made again, neither is lost."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from attlas.data.runs.trash import bring_back, empty_trash, put_away, runs_away
from attlas.data.workspace import Ref, Run, Workspace
from attlas.errors import WorkspaceError

MODEL = Ref("gpt2-mini", "0" * 16)


def _made(workspace: Workspace, value: float = 1.0) -> Run:
    with workspace.begin("entropy", model=MODEL, config={"a": 1}) as writer:
        writer.table("t", pa.table({"x": [value]}))
    return workspace.run(writer.id)


def test_away_and_back(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = _made(workspace)
    put_away(workspace, run.id)
    assert workspace.runs() == []
    assert Workspace(tmp_path).latest("entropy") is None
    assert [away.run for away in runs_away(workspace)] == [run]
    assert workspace.find("entropy", model=MODEL, config={"a": 1}) is None
    assert bring_back(workspace, run.id) == run
    assert workspace.runs() == [run]
    assert runs_away(workspace) == []
    assert workspace.read_table(run, "t").to_pydict() == {"x": [1.0]}


def test_made_again_while_the_older_is_away(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    older = _made(workspace, 1.0)
    put_away(workspace, older.id)
    newer = _made(workspace, 2.0)
    _made(workspace, 3.0)  # collects what writers left; the one that is away is not among it
    with pytest.raises(WorkspaceError, match="made again"):
        bring_back(workspace, older.id)
    assert newer.id == older.id
    put_away(workspace, newer.id)
    assert bring_back(workspace, older.id).created != older.created  # the last that went
    assert workspace.read_table(older.id, "t").to_pydict() == {"x": [3.0]}
    put_away(workspace, older.id)
    assert empty_trash(workspace) == 2
    assert runs_away(workspace) == []
    assert [p.name for p in (tmp_path / "runs").iterdir() if not p.name.startswith(".")] == []


def test_what_is_not_there(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(WorkspaceError, match="no run 'x'"):
        put_away(workspace, "x")
    with pytest.raises(WorkspaceError, match="was put away"):
        bring_back(workspace, "x")
    assert empty_trash(workspace) == 0
