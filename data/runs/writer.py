"""A run while it is written: files in a hidden folder that only this process touches."""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attlas._version import __version__
from attlas.data.disk import disk_errors
from attlas.data.files import check_name
from attlas.data.runs.folders import UNCOMMITTED
from attlas.data.runs.record import Run, jsonable
from attlas.data.runs.rows import rows_per_group
from attlas.errors import NonFiniteError, StorageError

if TYPE_CHECKING:
    from attlas.data.workspace import Workspace


class RunWriter:
    """Collects one run's files; entering gives itself, leaving commits, an exception discards."""

    def __init__(self, workspace: Workspace, run: Run) -> None:
        self.workspace = workspace
        self.record = run
        self.summary: dict[str, Any] = {}
        self._tables: list[str] = []
        self._arrays: list[str] = []
        self._temporary = Path()
        self._lock: int | None = None

    @property
    def id(self) -> str:
        return self.record.id

    def __enter__(self) -> RunWriter:
        try:
            self._open()
        except StorageError as error:
            self.workspace.move_elsewhere(error, 0)
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._close()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def table(self, name: str, table: pa.Table) -> None:
        """Write `<name>.parquet` (zstd, checksums, row groups small enough to be read alone).

        Raises:
            NonFiniteError: it has measurements, and all of them are NaN or infinite.
        """
        if not _measures(table):
            raise NonFiniteError(
                f"table '{name}' of {self.id} would hold NaN or infinity alone, so nothing is saved; look for NaN in the "
                "model's weights, or load it in float32"
            )

        def save(path: Path) -> None:
            pq.write_table(
                table, path, compression="zstd", row_group_size=rows_per_group(table), write_page_checksum=True
            )

        self.write(f"{check_name(name, 'table')}.parquet", save)
        self._tables.append(name)

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write `<name>.safetensors` (numpy arrays, made contiguous)."""
        from safetensors.numpy import save_file

        contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        self.write(f"{check_name(name, 'arrays')}.safetensors", lambda path: save_file(contiguous, path))
        self._arrays.append(name)

    def write(self, name: str, save: Callable[[Path], Any]) -> None:
        """Let `save` fill a file or folder of another format, such as a saved SAE, at a path in the run's folder.

        Args:
            name: of the file or folder, "sae" or "saes/first".
            save: called with its path; once more with another, where the disk is full and the workspace may move.
        """
        parts = [check_name(part, "file") for part in name.split("/")]
        try:
            self._save(parts, save)
        except StorageError as error:
            self._move(error, drop=parts)
            self._save(parts, save)

    def _save(self, parts: list[str], save: Callable[[Path], Any]) -> None:
        path = self._temporary.joinpath(*parts)
        with disk_errors(self.workspace.path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path)

    def _open(self) -> None:
        """Make the hidden folder and hold a lock on it, so that others see that its writer still runs."""
        folder = self.workspace.path / "runs" / f".new-{self.record.id}-{uuid.uuid4().hex[:8]}"
        with disk_errors(self.workspace.path):
            folder.mkdir(parents=True)
            self._temporary = folder
            self._lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            (folder / UNCOMMITTED).touch()

    def _close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _move(self, error: StorageError, drop: list[str]) -> None:
        """Go on in a workspace on another disk with what is written so far, less the path that failed."""
        before = self._temporary
        self.workspace.move_elsewhere(error, sum(p.stat().st_size for p in before.rglob("*") if p.is_file()))
        self._close()
        self._open()
        if drop:
            failed = before.joinpath(*drop)
            shutil.rmtree(failed) if failed.is_dir() else failed.unlink(missing_ok=True)
        with disk_errors(self.workspace.path):
            shutil.copytree(before, self._temporary, dirs_exist_ok=True)
        shutil.rmtree(before, ignore_errors=True)

    def _commit(self) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        record = dataclasses.replace(
            self.record,
            tables=tuple(self._tables),
            arrays=tuple(self._arrays),
            summary=jsonable(self.summary),
            created=now,
            attlas_version=__version__,
        )
        try:
            self.record = self.workspace.commit(record, self._temporary)
        except StorageError as error:
            self._move(error, drop=[])
            self.record = self.workspace.commit(record, self._temporary)


def _measures(table: pa.Table) -> bool:
    """Whether one number at least is finite, or there are none to be so: single columns may well be NaN."""
    floats = [c for c in table.columns if pa.types.is_floating(c.type) and c.null_count < len(c)]
    return not floats or any(pc.any(pc.is_finite(column)).as_py() for column in floats)
