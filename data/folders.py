"""Put a finished folder where an old one stands, in one step: a reader finds the old folder or the new one."""

from __future__ import annotations

import ctypes
import os
import shutil
import uuid
from pathlib import Path

from attlas.data.files import fsync_dir

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def replace_folder(new: Path, target: Path) -> None:
    """Rename `new` to `target`, both on one file system; what stood at `target` is removed afterwards.

    Linux swaps the two names in one call. Elsewhere the old folder steps aside first, and comes back on any error.

    Raises:
        OSError: the new folder could not take the place; the old one is where it was.
    """
    if not target.exists():
        new.rename(target)
        fsync_dir(target.parent)
        return
    if _swap(new, target):
        fsync_dir(target.parent)
        shutil.rmtree(new, ignore_errors=True)
        return
    aside = target.with_name(f".{target.name}.old-{uuid.uuid4().hex[:8]}")
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    fsync_dir(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names by renameat2 (Linux 3.15, glibc 2.28); False where that is not to be had."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)
