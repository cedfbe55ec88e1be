"""A workspace is a folder: Parquet tables and safetensors arrays, a folder per run, and a manifest of their origin.

    workspace/
      manifest.json        what was run, on which model and data, with which config, seed and version, when
      .lock                held only while the manifest is read, changed and renamed into place
      runs/<run id>/       <table>.parquet, <arrays>.safetensors, and folders such as sae/

A run is written into a hidden folder, fsynced, renamed, and only then listed in the manifest, so a crash at any point
leaves the workspace as it was. Any number of processes may write at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attlas.data.files import fsync_dir, write_text_atomic
from attlas.errors import WorkspaceError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Ref:
    """A model or a data set: the name a person uses, and a hash of its content."""

    name: str
    hash: str


@dataclass(frozen=True)
class Run:
    """One entry of the manifest.

    Attributes:
        id: folder name under `runs/`, `<kind>-<model name>-<key>`; equal inputs give equal ids.
        kind: which job wrote it, such as "sae", "features", "entropy".
        model: the model analysed.
        data: the tokens or images used, or None.
        config: the job's configuration, as JSON.
        seed: the seed, or None where nothing is random.
        parents: ids of runs this one read (features → its SAE).
        tables: names of Parquet tables.
        arrays: names of safetensors files.
        summary: headline numbers, for overview pages.
        created: ISO 8601, UTC.
        attlas_version: version of the writer.
    """

    id: str
    kind: str
    model: Ref
    data: Ref | None = None
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    parents: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    attlas_version: str = ""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Run:
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in entry.items() if k in known}
        for key in ("parents", "tables", "arrays"):
            values[key] = tuple(values.get(key, ()))
        values["model"] = Ref(**entry["model"])
        values["data"] = Ref(**entry["data"]) if entry.get("data") else None
        return cls(**values)


def jsonable(value: Any) -> Any:
    """Turn a config (dataclass, tuple, path, numpy scalar …) into plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def run_key(kind: str, model: Ref, data: Ref | None, config: Mapping[str, Any], parents: tuple[str, ...]) -> str:
    """Eight hex digits that are equal exactly when a run would compute the same thing."""
    payload = json.dumps([kind, model.hash, data.hash if data else None, config, parents], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:8]


class Workspace:
    """Open a workspace folder; it is created by the first write.

    Args:
        path: the folder.

    Raises:
        WorkspaceError: the folder exists, is not empty and has no manifest; or its manifest is of a newer schema,
            or cannot be parsed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise WorkspaceError(f"workspace '{self.path}' is a file; give a folder")
        if self.path.is_dir() and not self._manifest.exists():
            strangers = [p.name for p in self.path.iterdir() if not p.name.startswith(".") and p.name != "runs"]
            if strangers:
                raise WorkspaceError(
                    f"'{self.path}' is not a workspace (no manifest.json, but {strangers[0]!r}); give a new folder"
                )
        self._read()

    def __repr__(self) -> str:
        return f"Workspace({str(self.path)!r}, {len(self.runs())} runs)"

    @property
    def _manifest(self) -> Path:
        return self.path / "manifest.json"

    def _read(self) -> dict[str, Any]:
        try:
            manifest = json.loads(self._manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"schema_version": SCHEMA_VERSION, "runs": []}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise WorkspaceError(
                f"'{self._manifest}' is not JSON ({error}); restore it or start a new workspace"
            ) from error
        version = manifest.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise WorkspaceError(
                f"workspace '{self.path}' has schema version {version}, this attlas reads up to "
                f"{SCHEMA_VERSION}; upgrade attlas"
            )
        return manifest

    # -- reading ---------------------------------------------------------------------------------------------------

    def runs(self, kind: str | None = None, *, model: str | None = None) -> list[Run]:
        """Runs, newest first; optionally only of one kind, or of one model (name or weight hash)."""
        found = [Run.from_json(entry) for entry in self._read()["runs"]]
        found = [r for r in found if kind in (None, r.kind) and model in (None, r.model.name, r.model.hash)]
        return sorted(found, key=lambda r: r.created, reverse=True)

    def run(self, run_id: str) -> Run:
        """The run with this id.

        Raises:
            WorkspaceError: there is none.
        """
        for entry in self._read()["runs"]:
            if entry["id"] == run_id:
                return Run.from_json(entry)
        raise WorkspaceError(f"workspace '{self.path}' has no run '{run_id}'")

    def latest(self, kind: str, *, model: str | None = None) -> Run | None:
        """The newest run of a kind, or None."""
        found = self.runs(kind, model=model)
        return found[0] if found else None

    def folder(self, run: Run | str) -> Path:
        """The folder that holds a run's files."""
        return self.path / "runs" / (run if isinstance(run, str) else run.id)

    def table_path(self, run: Run | str, name: str) -> Path:
        """Path of a table, for DuckDB.

        Raises:
            WorkspaceError: the run has no such table.
        """
        path = self.folder(run) / f"{name}.parquet"
        if not path.is_file():
            raise WorkspaceError(f"run '{self.folder(run).name}' has no table '{name}'")
        return path

    def read_table(self, run: Run | str, name: str) -> pa.Table:
        """A whole table in memory."""
        return pq.read_table(self.table_path(run, name))

    def read_arrays(self, run: Run | str, name: str) -> dict[str, np.ndarray]:
        """All arrays of one safetensors file, as numpy."""
        from safetensors.numpy import load_file

        path = self.folder(run) / f"{name}.safetensors"
        if not path.is_file():
            raise WorkspaceError(f"run '{self.folder(run).name}' has no arrays '{name}'")
        return load_file(path)

    # -- writing ---------------------------------------------------------------------------------------------------

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
        config_json = jsonable(config or {})
        key = run_key(kind, model, data, config_json, parents)
        slug = "".join(c if c.isalnum() else "-" for c in Path(model.name).name).strip("-") or "model"
        run = Run(
            id=f"{kind}-{slug}-{key}",
            kind=kind,
            model=model,
            data=data,
            config=config_json,
            seed=seed,
            parents=parents,
        )
        return RunWriter(self, run)

    def remove(self, run: Run | str) -> None:
        """Take a run off the manifest, then delete its folder."""
        run_id = run if isinstance(run, str) else run.id
        with self._locked() as manifest:
            manifest["runs"] = [entry for entry in manifest["runs"] if entry["id"] != run_id]
        shutil.rmtree(self.folder(run_id), ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        """Hold the lock, yield the manifest, write it back atomically."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a")
        except OSError as error:
            raise WorkspaceError(f"cannot write to workspace '{self.path}': {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            manifest = self._read()
            yield manifest
            write_text_atomic(self._manifest, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    def _commit(self, run: Run, temporary: Path) -> None:
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
        with self._locked() as manifest:
            final = self.folder(run)
            old = final.with_name(f".old-{uuid.uuid4().hex}")
            if final.exists():
                final.rename(old)
            temporary.rename(final)
            fsync_dir(final.parent)
            entry = jsonable(run)
            manifest["runs"] = [e for e in manifest["runs"] if e["id"] != run.id] + [entry]
        shutil.rmtree(old, ignore_errors=True)


class RunWriter:
    """Collects one run's files; entering gives itself, leaving commits, an exception discards."""

    def __init__(self, workspace: Workspace, run: Run) -> None:
        self.workspace = workspace
        self.record = run
        self.summary: dict[str, Any] = {}
        self._tables: list[str] = []
        self._arrays: list[str] = []
        self._temporary = workspace.path / "runs" / f".new-{run.id}-{uuid.uuid4().hex[:8]}"

    @property
    def id(self) -> str:
        return self.record.id

    def __enter__(self) -> RunWriter:
        try:
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise WorkspaceError(f"cannot write to workspace '{self.workspace.path}': {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            return
        from attlas import __version__

        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self.record = dataclasses.replace(
            self.record,
            tables=tuple(self._tables),
            arrays=tuple(self._arrays),
            summary=jsonable(self.summary),
            created=now,
            attlas_version=__version__,
        )
        self.workspace._commit(self.record, self._temporary)

    def table(self, name: str, table: pa.Table) -> None:
        """Write `<name>.parquet` (zstd, row groups of 32,768 so that DuckDB can skip)."""
        pq.write_table(table, self._temporary / f"{name}.parquet", compression="zstd", row_group_size=32_768)
        self._tables.append(name)

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write `<name>.safetensors` (numpy arrays, made contiguous)."""
        from safetensors.numpy import save_file

        contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        save_file(contiguous, self._temporary / f"{name}.safetensors")
        self._arrays.append(name)

    def subfolder(self, name: str) -> Path:
        """A folder of the run for files of other formats, such as a saved SAE."""
        path = self._temporary / name
        path.mkdir(parents=True, exist_ok=True)
        return path
