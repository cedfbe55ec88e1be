"""The folder that an export fills."""

from __future__ import annotations

from pathlib import Path

from attlas.data.disk import check_writable
from attlas.errors import ConfigError


def check_folder(folder: Path) -> None:
    """Raises ConfigError where it holds something, and StorageError where it cannot be written."""
    check_writable(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"'{folder}' is not an empty folder; give another with --to")
