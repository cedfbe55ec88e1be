"""Atomic writes and content hashes: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from attlas.data.disk import disk_errors
from attlas.errors import WorkspaceError

_LONGEST_NAME = 200  # bytes; file systems take 255, and temporary names are longer than the name


def check_name(name: Any, what: str) -> str:
    """The name itself when it is one plain path component: no separators, not hidden, not too long.

    Raises:
        WorkspaceError: it is not, so that no id or table name ever leads out of its folder.
    """
    plain = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\")
    if plain and not name.startswith(".") and 0 < len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME:
        return str(name)
    raise WorkspaceError(f"{what} {str(name)[:60]!r} is not a plain file name")


def fsync_dir(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`, on error delete it.

    Raises:
        StorageError: the disk is full or read-only, or the folder is not ours.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(fd)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            fsync_dir(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@lru_cache(maxsize=65_536)
def _sha256_of(path: str, size: int, mtime_ns: int, inode: int) -> str:
    return sha256_file(Path(path))


def is_whole(path: Path, size: int, sha256: str) -> bool:
    """Whether a file has this size and hash; read once for as long as its size and time of change stay the same."""
    try:
        seen = path.stat()
        return seen.st_size == size and _sha256_of(str(path), size, seen.st_mtime_ns, seen.st_ino) == sha256
    except OSError:
        return False


def cache_dir() -> Path:
    """The folder of fetched models: `$ATTLAS_CACHE`, else `$XDG_CACHE_HOME/attlas`, else `~/.cache/attlas`."""
    if explicit := os.environ.get("ATTLAS_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attlas"
