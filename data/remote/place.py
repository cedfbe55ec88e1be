"""A folder to write files into and read them from, here or behind a URL, with one promise: a file is whole, or not there.

Here a file is written beside its place and renamed; there it is made in a temporary file and sent in one piece, which object
stores show when they have all of it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from attlas.data.disk import check_writable, disk_errors
from attlas.data.files import atomic_path, sha256_file, write_text_atomic
from attlas.data.remote import Folder
from attlas.data.remote.file import is_remote, url_errors, url_system
from attlas.errors import StorageError


class Place(Protocol):
    """What both kinds of folder do; names are of files right inside."""

    def path(self, name: str) -> str:
        """How a file is called in messages."""

    def names(self) -> list[str]:
        """Of what is inside, sorted; none where the folder is not there."""

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where it is not there."""

    def write(self, name: str, fill: Callable[[Path], None]) -> str:
        """Write a file: `fill` makes it at the path given. Returns its SHA-256."""

    def write_text(self, name: str, text: str) -> None:
        """Write a file of UTF-8."""

    def add_line(self, name: str, line: str) -> None:
        """Add a line to a file that this place wrote."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def free(self) -> int | None:
        """Bytes that fit; None where nobody knows."""

    def check(self) -> None:
        """Raise StorageError where nothing can be written; nothing is left behind."""


def place_of(folder: Folder) -> Place:
    """The place of a local folder, or of one behind a URL that fsspec knows.

    Example:
        >>> from attlas.data.remote.place import place_of
        >>> place = place_of("memory://attlas-example")
        >>> place.write_text("a.txt", "whole")
        >>> place.names(), place.read("a.txt"), place.read("b.txt")
        (['a.txt'], b'whole', None)
    """
    if isinstance(folder, str) and folder.startswith("file://"):
        return _Here(Path(folder.removeprefix("file://")))
    return _There(folder) if isinstance(folder, str) and is_remote(folder) else _Here(Path(folder))


def as_folder(folder: Folder) -> Folder:
    """A URL as it is, anything else as a path."""
    return folder if isinstance(folder, str) and is_remote(folder) else Path(folder)


class _Here:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []

    def read(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, fill: Callable[[Path], None]) -> str:
        with atomic_path(self.folder / name) as temporary:
            fill(temporary)
        return sha256_file(self.folder / name)

    def write_text(self, name: str, text: str) -> None:
        write_text_atomic(self.folder / name, text)

    def add_line(self, name: str, line: str) -> None:
        with disk_errors(self.folder), open(self.folder / name, "a", encoding="utf-8") as handle:
            handle.write(line + "\n")

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def free(self) -> int | None:
        existing = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        return shutil.disk_usage(existing).free

    def check(self) -> None:
        check_writable(self.folder)


class _There:
    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with url_errors(self.url, StorageError):
            self.system, self.top = url_system(self.url)
        self._lines: dict[str, str] = {}

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _in(self, name: str) -> str:
        return f"{self.top.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        with url_errors(self.url, StorageError):
            self.system.invalidate_cache()  # what another process wrote since
            try:
                found = self.system.find(self.top)
            except FileNotFoundError:
                return []
        inside = [path.lstrip("/").removeprefix(self.top.strip("/")).lstrip("/") for path in found]
        return sorted({name.split("/")[0] for name in inside if name})

    def read(self, name: str) -> bytes | None:
        with url_errors(self.path(name), StorageError):
            try:
                found: bytes = self.system.cat_file(self._in(name))
            except FileNotFoundError:
                return None
            return found

    def write(self, name: str, fill: Callable[[Path], None]) -> str:
        with tempfile.TemporaryDirectory(prefix="attlas-send-") as folder:
            temporary = Path(folder) / name
            with disk_errors(temporary):
                fill(temporary)
            digest = sha256_file(temporary)
            with url_errors(self.path(name), StorageError):
                self.system.put_file(str(temporary), self._in(name))
        return digest

    def write_text(self, name: str, text: str) -> None:
        self._lines[name] = text
        with url_errors(self.path(name), StorageError):
            self.system.pipe_file(self._in(name), text.encode())

    def add_line(self, name: str, line: str) -> None:  # object stores add nothing to what is there
        self.write_text(name, self._lines.get(name, "") + line + "\n")

    def remove(self, name: str) -> None:
        with url_errors(self.path(name), StorageError):
            if self.system.exists(self._in(name)):
                self.system.rm_file(self._in(name))

    def free(self) -> int | None:
        return None

    def check(self) -> None:
        name = f".attlas-probe-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"
        self.write_text(name, "")
        self.remove(name)
