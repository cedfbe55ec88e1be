"""Places to write: checked before any work, refused in one line, and another one when a disk fills up at the end."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attlas.errors import StorageError

_PROBE_BYTES = 1 << 16  # an empty file can still be made on a full disk
_REFUSALS = {
    errno.ENOSPC: "no space left; free some, or name a place on another disk",
    errno.EDQUOT: "the disk quota is used up; free some, or name a place on another disk",
    errno.EFBIG: "a file would be larger than is allowed here (ulimit -f); raise the limit or name another place",
    errno.EROFS: "the file system is read-only; name another place",
    errno.EACCES: "permission denied; name a place you may write to",
    errno.EPERM: "not permitted; name a place you may write to",
    errno.ENOTDIR: "a part of this path is a file; name another place",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.EIO: "the disk gives errors; name another place",
}
_WRAPPED = re.compile(r"os error (\d+)|[Ee]rrno (\d+)")  # of Rust (safetensors) and of C++ (pyarrow)
_TORCH = ("PytorchStreamWriter failed", "inline_container.cc", "iostream error")  # torch.save does not say which


def reason(error: BaseException) -> str | None:
    """Why a place cannot be written, and what to do; None when the error is about something else."""
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    text = str(error)
    if number is None and (found := _WRAPPED.search(text)):
        number = int(found[1] or found[2])
    if number is None and any(words in text for words in _TORCH):
        number = errno.ENOSPC
    return _REFUSALS.get(number) if number is not None else None


def as_storage_error(error: BaseException, path: str | Path | None = None) -> StorageError | None:
    """The error as one line about `path` (else about the file it names); None when it is about something else."""
    why = reason(error)
    if why is None or isinstance(error, StorageError):
        return error if isinstance(error, StorageError) else None
    place = path if path is not None else getattr(error, "filename", None)
    return StorageError(f"cannot write '{place}': {why}" if place else f"cannot write to the disk: {why}")


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Full disks, read-only places and missing rights, whichever library raises them, become StorageErrors."""
    try:
        yield
    except Exception as error:
        refused = as_storage_error(error, path)
        if refused is None or refused is error:
            raise
        raise refused from error


def check_writable(folder: str | Path) -> None:
    """Make sure that files can be written in a folder, which may not exist yet; nothing is left behind.

    Raises:
        StorageError: it is a file, it or its parent is read-only or not ours, or its disk is full.
    """
    folder = Path(folder).expanduser().absolute()
    with disk_errors(folder):
        place = next(p for p in (folder, *folder.parents) if p.exists())
        if not place.is_dir():
            what = f"'{folder}' is a file" if place == folder else f"'{place}' is a file, so '{folder}' cannot be made"
            raise StorageError(f"{what}; name another folder")
        fd, name = tempfile.mkstemp(prefix=".attlas-probe-", dir=place)
        try:
            with open(fd, "wb") as handle:
                handle.write(b"\0" * _PROBE_BYTES)
                handle.flush()
                os.fsync(handle.fileno())
        finally:
            with suppress(OSError):
                os.unlink(name)


def other_place(full: str | Path, needed: int = 0) -> Path | None:
    """A new folder on another file system than `full`, with room for `needed` bytes; None when there is none."""
    there = next(p for p in (Path(full).absolute(), *Path(full).absolute().parents) if p.exists())
    device = there.stat().st_dev
    for candidate in (Path(tempfile.gettempdir()), Path.home(), Path.cwd(), Path("/var/tmp"), Path("/dev/shm")):
        with suppress(OSError, StorageError):
            if candidate.stat().st_dev == device or shutil.disk_usage(candidate).free < 1.1 * needed + (1 << 20):
                continue
            check_writable(candidate)
            return Path(tempfile.mkdtemp(prefix="attlas-kept-", dir=candidate))
    return None
