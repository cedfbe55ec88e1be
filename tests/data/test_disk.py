"""Full, read-only and forbidden places: said in one line before any work; a result that is ready is kept elsewhere."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from attlas.data import disk
from attlas.data.disk import as_storage_error, check_writable, disk_errors
from attlas.data.files import atomic_path, write_text_atomic
from attlas.data.schema import TableSchema, column
from attlas.data.workspace import Ref, Workspace
from attlas.errors import StorageError

MODEL = Ref("m", "0" * 16)
SCHEMA = TableSchema("t", "one row", (column("x", pa.float64(), "", "a number"),))


def fill(place: Path, leave: int) -> None:
    """Fill a disk up to so many bytes."""
    with open(place / "ballast", "wb") as handle:
        status = os.statvfs(place)
        handle.write(b"\1" * (status.f_bavail * status.f_frsize - leave))


def write(workspace: Workspace, n: int = 40_000) -> str:
    with workspace.begin("job", model=MODEL) as run:
        run.table("small", TableSchema("small", "", SCHEMA.columns).table({"x": [1.0]}))
        run.table("t", SCHEMA.table({"x": np.random.default_rng(0).normal(size=n)}))
        run.write("sae/weights.bin", lambda path: path.write_bytes(os.urandom(n)))
    return run.id


def test_a_full_disk_is_seen_before_the_work(mount: Callable[[str], Path]) -> None:
    place = mount("size=1m")
    check_writable(place / "new" / "folder")
    fill(place, 0)
    with pytest.raises(StorageError, match=r"no space left; free some, or name a place on another disk"):
        check_writable(place / "new" / "folder")
    assert [p.name for p in place.iterdir()] == ["ballast"]


def test_a_read_only_disk_is_seen_before_the_work(mount: Callable[[str], Path]) -> None:
    place = mount("size=1m,ro")
    with pytest.raises(StorageError, match="read-only"):
        Workspace(place / "w").check_writable()


def test_files_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for inside in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(StorageError, match="is a file"):
            check_writable(inside)
    with pytest.raises(StorageError, match="too long"):
        check_writable(tmp_path / ("x" * 300))


@pytest.mark.parametrize("full_at", [100_000, 330_000, 700_000])
def test_a_finished_run_moves_to_another_disk(mount: Callable[[str], Path], full_at: int, tmp_path: Path) -> None:
    """Full while the first table, the second, or the folder is written; nothing stays behind on the full disk."""
    place = mount("size=1m")
    fill(place, full_at)
    workspace = Workspace(place / "w", rescue=True)
    with pytest.warns(UserWarning, match=r"no space left.*the result is kept in workspace") as caught:
        write(workspace, 400_000 if full_at > 500_000 else 40_000)
    assert len(caught) == 1
    assert workspace.moved_from == place / "w"
    (run,) = Workspace(workspace.path).runs()
    assert workspace.read_table(run, "t").num_rows > 1000
    workspace.checked_folder(run, "sae")
    assert not [p for p in (place / "w").rglob("*") if p.is_file() and p.stat().st_size > 0]
    write(workspace, 10)  # what follows stays there
    shutil.rmtree(workspace.path)
    with pytest.raises(StorageError, match="no space left"):
        write(Workspace(place / "w"), 400_000)  # a library's caller still holds the result
    assert not list((place / "w").rglob("*.parquet"))


def test_the_manifest_is_what_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("attlas.data.workspace.other_place", lambda full, needed: elsewhere)
    usual = os.replace

    def full(source: str, target: str) -> None:
        if str(target).startswith(str(tmp_path / "w")):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        usual(source, target)

    monkeypatch.setattr(os, "replace", full)
    workspace = Workspace(tmp_path / "w", rescue=True)
    with pytest.warns(UserWarning, match="no space left"):
        run_id = write(workspace)
    assert Workspace(elsewhere).run(run_id).tables == ("small", "t")
    assert not list((tmp_path / "w" / "runs").iterdir())
    with pytest.raises(StorageError):
        write(Workspace(tmp_path / "w"))
    assert not list((tmp_path / "w" / "runs").iterdir())


def test_every_library_s_words_for_it(mount: Callable[[str], Path]) -> None:
    from safetensors.numpy import save_file

    place = mount("size=256k")
    big = np.zeros(100_000)
    writers: list[Callable[[Path], object]] = [
        lambda path: save_file({"x": big}, path),
        lambda path: torch.save({"x": torch.from_numpy(big)}, path),
        lambda path: path.write_bytes(big.tobytes()),
        lambda path: pa.parquet.write_table(pa.table({"x": np.random.default_rng(0).normal(size=99_999)}), path),
    ]
    for writer in writers:
        with pytest.raises(StorageError, match="no space left"), atomic_path(place / "x.bin") as path:
            writer(path)
        assert not list(place.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (ValueError("os error"), FileNotFoundError(2, "no such file"), RuntimeError("shape")):
        assert as_storage_error(error) is None
        with pytest.raises(type(error)), disk_errors(tmp_path):
            raise error
    write_text_atomic(tmp_path / "a.txt", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_forbidden_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"):
        check_writable(tmp_path / "w")
    tmp_path.chmod(0o700)


def test_no_other_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.tempfile, "gettempdir", lambda: str(tmp_path))
    here = tmp_path.stat().st_dev
    found = disk.other_place(tmp_path / "w")
    if found is not None:
        assert found.stat().st_dev != here
        found.rmdir()
    assert disk.other_place(tmp_path / "w", needed=1 << 60) is None
