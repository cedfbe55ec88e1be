"""A workspace is a folder: Parquet tables and safetensors arrays, a folder per run, and a manifest of their origin.

    workspace/
      manifest.json        what was run, on which model and data, with which config, seed and version, when
      .lock                held only while the manifest is read, changed and renamed into place
      runs/<run id>/       <table>.parquet, <arrays>.safetensors, and folders such as sae/

The manifest is the only truth: a run is the folder and the hashes that its entry names. A run is written into a hidden
folder, fsynced, renamed to a name that no entry has yet, and only then listed; what it replaces is deleted after that.
So a crash at any point leaves the old run whole or the new one, and what it left behind is collected by the next
write. Any number of processes may write at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attlas.data.disk import check_writable, disk_errors, other_place
from attlas.data.files import check_name, fsync_dir, is_whole, write_text_atomic
from attlas.data.runs.folders import UNCOMMITTED, all_entries, collect, delete, folder_of, seal, unused
from attlas.data.runs.record import Ref, Run, jsonable, run_id, run_key
from attlas.data.runs.rows import read_where
from attlas.data.runs.writer import RunWriter
from attlas.errors import StorageError, WorkspaceError

__all__ = ["SCHEMA_VERSION", "Ref", "Run", "RunWriter", "Workspace", "in_workspace", "jsonable", "run_key"]

SCHEMA_VERSION = 2  # 1: a run's folder was always its id, and no hashes were kept
_HASHED_WHOLE = 64 << 20  # bytes


class Workspace:
    """Open a workspace folder; it is created by the first write.

    Args:
        path: the folder.
        rescue: where a finished run finds no room, write it and all that follow to another disk, with a warning that
            says where, in place of an error (`path` changes, `moved_from` tells from where).

    Raises:
        WorkspaceError: the folder exists, is not empty and has no manifest; or its manifest is of a newer schema,
            or cannot be parsed.

    Example:
        >>> from attlas import Workspace
        >>> from attlas.analyses.redundancy import redundancy
        >>> written = redundancy(model, text).save(folder / "workspace", model, text)
        >>> workspace = Workspace(folder / "workspace")
        >>> [run.kind for run in workspace.runs(model="gpt2-mini")]
        ['redundancy']
        >>> workspace.read_table(written, "redundancy").num_rows  # layers × (attn, mlp, block)
        12
    """

    def __init__(self, path: str | Path, *, rescue: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.rescue = rescue
        self.moved_from: Path | None = None
        try:
            if self.path.exists() and not self.path.is_dir():
                raise WorkspaceError(f"workspace '{self.path}' is a file; give a folder")
            if self.path.is_dir() and not self._manifest.exists():
                strangers = [
                    p.name
                    for p in self.path.iterdir()
                    if not p.name.startswith((".", "notes.sqlite")) and p.name != "runs"
                ]
                if strangers:
                    raise WorkspaceError(
                        f"'{self.path}' is not a workspace (no manifest.json, but {strangers[0]!r}); give a new folder"
                    )
        except OSError as error:
            raise WorkspaceError(f"workspace '{self.path}' cannot be opened: {error.strerror or error}") from error
        self.manifest()

    def __repr__(self) -> str:
        return f"Workspace({str(self.path)!r}, {len(self.runs())} runs)"

    @property
    def _manifest(self) -> Path:
        return self.path / "manifest.json"

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands, checked for its version; runs are not."""
        try:
            manifest = json.loads(self._manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"schema_version": SCHEMA_VERSION, "runs": []}
        except OSError as error:
            raise WorkspaceError(f"'{self._manifest}' cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:  # JSON, UTF-8, numbers of thousands of digits
            raise WorkspaceError(
                f"'{self._manifest}' is not JSON ({str(error)[:120]}); restore it or start a new workspace"
            ) from error
        version = manifest.get("schema_version") if isinstance(manifest, dict) else None
        runs = manifest.get("runs") if isinstance(manifest, dict) else None
        if not isinstance(version, int) or isinstance(version, bool) or version < 1 or not isinstance(runs, list):
            raise WorkspaceError(
                f"'{self._manifest}' is no manifest of a workspace (it must have a schema_version and a list of runs); "
                "restore it or start a new workspace"
            )
        if version > SCHEMA_VERSION:
            shown = version if version < 2**63 else "of too many digits"
            raise WorkspaceError(
                f"workspace '{self.path}' has schema version {shown}, this attlas reads up to "
                f"{SCHEMA_VERSION}; upgrade attlas"
            )
        return manifest

    # -- reading ---------------------------------------------------------------------------------------------------

    def runs(self, kind: str | None = None, *, model: str | None = None) -> list[Run]:
        """Runs, newest first; optionally only of one kind, or of one model (name or weight hash).

        An entry of the manifest that cannot be read is left out, with a warning that says what is wrong with it.
        """
        found = []
        for entry in self.manifest()["runs"]:
            try:
                found.append(Run.from_json(entry))
            except WorkspaceError as error:
                warnings.warn(f"workspace '{self.path}': {error}; it is left out", stacklevel=2)
        found = [r for r in found if kind in (None, r.kind) and model in (None, r.model.name, r.model.hash)]
        return sorted(found, key=lambda r: r.created, reverse=True)

    def run(self, run_id: str) -> Run:
        """The run with this id.

        Raises:
            WorkspaceError: there is none, or its entry in the manifest cannot be read.
        """
        for entry in self.manifest()["runs"]:
            if isinstance(entry, dict) and entry.get("id") == run_id:
                return Run.from_json(entry)
        raise WorkspaceError(f"workspace '{self.path}' has no run '{str(run_id)[:80]}'")

    def latest(self, kind: str, *, model: str | None = None) -> Run | None:
        """The newest run of a kind, or None."""
        found = self.runs(kind, model=model)
        return found[0] if found else None

    def folder(self, run: Run | str) -> Path:
        """The folder that holds a run's files; for reading one of them, `file` checks it first.

        Raises:
            WorkspaceError: the id is not a plain file name.
        """
        if isinstance(run, str):
            check_name(run, "run id")
            known = [e for e in self.manifest()["runs"] if isinstance(e, dict) and e.get("id") == run]
            return self.path / "runs" / (Run.from_json(known[0]).folder if known else run)
        return self.path / "runs" / check_name(run.folder or run.id, "run id")

    def file(self, run: Run | str, name: str) -> Path:
        """Path of one file of a run, such as "t.parquet" or "sae/cfg.json", whole as it was written.

        Raises:
            WorkspaceError: the run has no such file, or it is not the one that was written.
        """
        run = self.run(run) if isinstance(run, str) else run
        parts = [check_name(part, "file") for part in name.split("/")]
        path = self.folder(run).joinpath(*parts)
        if not path.is_file() and (now := self._now(run)) != run:  # replaced since it was looked up
            run, path = now, self.folder(now).joinpath(*parts)
        kept = run.files.get(name)
        if not path.is_file():
            if kept is None:
                raise WorkspaceError(f"run '{run.id}' has no file '{name}'")
            raise WorkspaceError(f"run '{run.id}': '{name}' is missing from '{path.parent}'; run the job again")
        if kept is not None and not is_whole(path, kept["bytes"], kept["sha256"]):
            raise WorkspaceError(
                f"run '{run.id}': '{path}' is damaged (not the bytes that were written); restore it or run the job again"
            )
        return path

    def checked_folder(self, run: Run | str, name: str = "") -> Path:
        """A folder of a run (all of it by default), after every file in it was checked as `file` does."""
        run = self.run(run) if isinstance(run, str) else run
        for path in run.files:
            if not name or path.startswith(f"{name}/"):
                self.file(run, path)
        return self.folder(run) / name

    def _now(self, run: Run) -> Run:
        with contextlib.suppress(WorkspaceError):
            return self.run(run.id)
        return run

    def table_path(self, run: Run | str, name: str) -> Path:
        """Path of a table, for DuckDB.

        Raises:
            WorkspaceError: the run has no such table, or it is damaged.
        """
        run = self.run(run) if isinstance(run, str) else run
        if name not in run.tables:
            raise WorkspaceError(f"run '{run.id}' has no table '{name}'")
        return self.file(run, f"{name}.parquet")

    def read_table(self, run: Run | str, name: str) -> pa.Table:
        """A whole table in memory.

        Raises:
            WorkspaceError: the run has no such table, or it is damaged.
        """
        path = self.table_path(run, name)
        try:
            return pq.ParquetFile(path, page_checksum_verification=True).read()
        except (pa.ArrowException, OSError) as error:
            raise WorkspaceError(f"'{path}' is damaged ({_first_line(error)}); run the job again") from error

    def read_rows(self, run: Run, name: str, columns: Sequence[str] | None = None, **equal: int) -> pa.Table:
        """Rows of a table whose whole-number columns equal these values; of a sorted one, only their part is read.

        A file above 64 MiB is not hashed whole, which takes seconds; each page that is read is checked by its checksum.

        Raises:
            WorkspaceError: the run has no such table, or it is damaged.
        """
        path = self.folder(run) / f"{check_name(name, 'table')}.parquet"
        kept = run.files.get(path.name, {}).get("bytes")
        if not (path.is_file() and kept == path.stat().st_size > _HASHED_WHOLE):
            path = self.table_path(run, name)
        try:
            return read_where(path, equal, columns)
        except (pa.ArrowException, OSError) as error:
            raise WorkspaceError(f"'{path}' is damaged ({_first_line(error)}); run the job again") from error

    def read_arrays(self, run: Run | str, name: str) -> dict[str, np.ndarray]:
        """All arrays of one safetensors file, as numpy.

        Raises:
            WorkspaceError: the run has no such arrays, or they are damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        run = self.run(run) if isinstance(run, str) else run
        if name not in run.arrays:
            raise WorkspaceError(f"run '{run.id}' has no arrays '{name}'")
        path = self.file(run, f"{name}.safetensors")
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WorkspaceError(f"'{path}' is damaged ({_first_line(error)}); run the job again") from error

    # -- writing ---------------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Make sure that runs can be written here, before the work for one begins.

        Raises:
            StorageError: the folder is read-only, not ours, or its disk is full.
        """
        check_writable(self.path / "runs")

    def find(
        self,
        kind: str,
        *,
        model: Ref,
        data: Ref | None = None,
        config: Any = None,
        parents: tuple[str, ...] = (),
    ) -> Run | None:
        """The run that an equal `begin` would write, when it is already there (no need to compute it again)."""
        key = run_key(kind, model, data, jsonable(config or {}), parents)
        return next((r for r in self.runs(kind) if r.id.endswith(f"-{key}")), None)

    def begin(
        self,
        kind: str,
        *,
        model: Ref,
        data: Ref | None = None,
        config: Any = None,
        seed: int | None = None,
        parents: tuple[str, ...] = (),
    ) -> RunWriter:
        """Start a run: `with workspace.begin("entropy", model=…, config=…) as run: run.table(…)`.

        A run with equal inputs is replaced when the block ends; nothing changes when it raises.
        """
        settings = jsonable(config or {})
        key = run_key(kind, model, data, settings, parents)
        run = Run(
            id=run_id(kind, model, key),
            kind=kind,
            model=model,
            data=data,
            config=settings,
            seed=seed,
            parents=parents,
        )
        return RunWriter(self, run)

    def remove(self, run: Run | str) -> None:
        """Take a run off the manifest, then delete its folder.

        Raises:
            WorkspaceError: there is no such run.
        """
        wanted = run if isinstance(run, str) else run.id
        check_name(wanted, "run id")
        with self.locked() as manifest:
            mine = [e for e in manifest["runs"] if isinstance(e, dict) and e.get("id") == wanted]
            if not mine:
                raise WorkspaceError(f"workspace '{self.path}' has no run '{wanted}'")
            manifest["runs"] = [e for e in manifest["runs"] if e not in mine]
        if name := folder_of(mine[0]):
            with contextlib.suppress(OSError):
                delete(self.path / "runs" / name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[dict[str, Any]]:
        """Hold the lock, yield the manifest, write it back atomically."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            manifest = self.manifest()
            yield manifest
            manifest["schema_version"] = SCHEMA_VERSION
            write_text_atomic(self._manifest, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    def commit(self, run: Run, temporary: Path) -> Run:
        """List the files of a hidden folder as this run, in place of an earlier one; for RunWriter.

        Raises:
            StorageError: there is no room; the folder keeps its files.
        """
        run = dataclasses.replace(run, files=seal(temporary))
        try:
            with self.locked() as manifest:
                collect(self.path / "runs", all_entries(manifest))
                final = unused(self.path / "runs", run.id, all_entries(manifest))
                run = dataclasses.replace(run, folder=final.name)
                with disk_errors(final):
                    os.rename(temporary, final)
                    fsync_dir(final.parent)
                others = [e for e in manifest["runs"] if not (isinstance(e, dict) and e.get("id") == run.id)]
                manifest["runs"] = [*others, jsonable(run)]
        except BaseException:
            listed = run.folder in {folder_of(entry) for entry in self.manifest()["runs"]}
            if not listed and not temporary.exists():
                os.rename(self.folder(run), temporary)
            raise
        with contextlib.suppress(OSError):  # what is left over is collected another time
            (final / UNCOMMITTED).unlink()
            with open(self.path / ".lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                collect(self.path / "runs", all_entries(self.manifest()))
        return run

    def move_elsewhere(self, error: StorageError, needed: int) -> None:
        """Write from now on to another disk, where one has room and `rescue` is set; else raise the error."""
        place = other_place(self.path, needed) if self.rescue and self.moved_from is None else None
        if place is None:
            raise error
        self.moved_from, self.path = self.path, place
        warnings.warn(f"{error}; the result is kept in workspace '{place}'", stacklevel=2)


def in_workspace(path: Path) -> Path:
    """The path itself; below a workspace's `runs/`, that of the run as it is now, after its files were checked.

    Raises:
        WorkspaceError: a file there is damaged.
    """
    path = Path(path)
    for place in (path, *path.parents):
        if place.parent.name == "runs" and (place.parent.parent / "manifest.json").is_file():
            workspace = Workspace(place.parent.parent)
            known = [r for r in workspace.runs() if place.name in (r.id, r.folder)]
            if not known:
                return path
            below = path.relative_to(place).as_posix()
            if below in known[0].files:
                return workspace.file(known[0], below)
            return workspace.checked_folder(known[0], "" if below == "." else below)
    return path


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
