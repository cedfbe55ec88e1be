"""Files behind a URL (`s3://…`, `https://…`, `hf://datasets/OWNER/NAME`, `memory://…`), read in pieces as local files are.

fsspec knows the protocols; each may need a package of its own (s3fs for s3, aiohttp for http). Parquet is read by row group and
lines as they come, so a file is never whole in memory, nor copied.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec

from attlas.errors import AttlasError, MissingExtraError, TextDataError

_URL = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL; has what readers ask of a path.

    Example:
        >>> from attlas.data.remote.file import RemoteFile
        >>> RemoteFile("s3://bucket/part.jsonl.gz").suffixes
        ['.jsonl', '.gz']
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.url.split("?")[0]).suffixes

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.url.split("?")[0]).suffix

    def open(self) -> IO[bytes]:
        """For reading, at any place.

        Raises:
            TextDataError: it cannot be opened.
        """
        with url_errors(self.url):
            system, path = url_system(self.url)
            found: IO[bytes] = system.open(path, "rb")
            return found


def is_remote(source: object) -> bool:
    """Whether a source is a URL, not a path."""
    return isinstance(source, str) and _URL.match(source) is not None


def open_binary(path: Path | RemoteFile) -> IO[bytes]:
    """A local or a remote file, for reading."""
    return path.open() if isinstance(path, RemoteFile) else open(path, "rb")


def url_system(url: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it) of a URL."""
    system, path = fsspec.core.url_to_fs(url)
    return system, path


@contextlib.contextmanager
def url_errors(url: str, kind: type[AttlasError] = TextDataError) -> Iterator[None]:
    """Whatever a protocol raises, in one line, as an error of this kind."""
    try:
        yield
    except AttlasError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"'{url}' needs a package of its protocol: {_line(error)}") from error
    except Exception as error:  # of the network, of permissions, of a protocol: many classes
        raise kind(
            f"'{url}' cannot be reached ({type(error).__name__}: {_line(error):.120}); check address and network"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
