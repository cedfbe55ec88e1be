"""Folders under a workspace's `runs/`: their names, their durable files with hashes, and what dead writers left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attlas.data.disk import disk_errors
from attlas.data.files import check_name, fsync_dir, sha256_file
from attlas.data.runs.record import Run
from attlas.errors import WorkspaceError

UNCOMMITTED = ".uncommitted"  # in a run's folder from its start until the manifest lists it
_HIDDEN = (".new-", ".old-")
_SETTLED_S = 60.0  # a hidden folder younger than this may belong to a writer that has not locked it yet


def seal(folder: Path) -> dict[str, dict[str, Any]]:
    """Make every file below a folder durable; relative path → {"bytes", "sha256"}."""
    files: dict[str, dict[str, Any]] = {}
    with disk_errors(folder):
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                fsync_dir(path)
                continue
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
            if path.name != UNCOMMITTED:
                name = path.relative_to(folder)
                for part in name.parts:
                    check_name(part, "file")
                files[name.as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        fsync_dir(folder)
    return files


def folder_of(entry: Any) -> str:
    """The folder that a raw entry of the manifest names, readable or not; "" for none."""
    name = entry.get("folder", entry.get("id")) if isinstance(entry, dict) else None
    with contextlib.suppress(WorkspaceError):
        return check_name(name, "folder")
    return ""


def all_entries(manifest: Mapping[str, Any]) -> list[Any]:
    """Raw entries of the runs that are listed, and of those put away (see `attlas.data.runs.trash`)."""
    away = manifest.get("away")
    return [*manifest["runs"], *(away if isinstance(away, list) else [])]


def unused(runs: Path, run_id: str, entries: Sequence[Any]) -> Path:
    """A folder for a run: its id, or id.2, id.3 …, one more than any that is listed or lies there."""
    taken = [folder_of(entry) for entry in entries] + [path.name for path in runs.iterdir()]
    newest = max((_generation(name, run_id) for name in taken), default=0)
    return runs / (f"{run_id}.{newest + 1}" if newest else run_id)


def collect(runs: Path, entries: Sequence[Any]) -> None:
    """Delete what killed writers left: hidden folders, runs that were never listed, and runs replaced since.

    The workspace's lock must be held. Folders that nothing tells about, such as the run of an entry that cannot be
    read, stay.
    """
    listed = {folder_of(entry) for entry in entries}
    ids = [run.id for entry in entries if (run := _run_or_none(entry)) is not None]
    for path in runs.iterdir():
        if path.name in listed:
            continue
        if path.name.startswith(_HIDDEN):
            left = _abandoned(path)
        else:
            left = (path / UNCOMMITTED).exists() or any(_generation(path.name, run_id) for run_id in ids)
        if left:
            with contextlib.suppress(OSError):
                delete(path)


def delete(folder: Path) -> None:
    """Delete a folder so that a crash leaves a hidden one, which is collected later; of a link only the link goes."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    hidden = folder
    if not folder.name.startswith(_HIDDEN):
        hidden = folder.with_name(f".old-{uuid.uuid4().hex}")
        os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _run_or_none(entry: Any) -> Run | None:
    with contextlib.suppress(WorkspaceError):
        return Run.from_json(entry)
    return None


def _generation(name: str, run_id: str) -> int:
    """1 of the id itself, 3 of id.3, 0 of any other name."""
    if name == run_id:
        return 1
    number = name.removeprefix(f"{run_id}.")
    return int(number) if number != name and number.isdecimal() and len(number) < 10 else 0


def _abandoned(folder: Path) -> bool:
    """Whether the writer of a hidden folder is dead: nobody holds the lock on it, and it is not brand new."""
    try:
        if time.time() - folder.stat().st_mtime < _SETTLED_S:
            return False
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
