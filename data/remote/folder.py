"""Which files behind a URL make up one split of a data set."""

from __future__ import annotations

from pathlib import PurePosixPath

from attlas.data.remote.file import RemoteFile, url_errors, url_system
from attlas.data.text_folders import choose_split, is_data, split_named
from attlas.errors import TextDataError


def remote_files(url: str, split: str | None, prefer: str | None) -> list[RemoteFile]:
    """The file, or the files of one split of a folder, told from their names as in a local one.

    Raises:
        TextDataError: nothing is there, it cannot be reached, or the split is not there.
        MissingExtraError: the protocol needs a package.
    """
    with url_errors(url):
        system, top = url_system(url)
        if not system.isdir(top):
            if not system.exists(top):
                raise TextDataError(f"'{url}' does not exist; check the address")
            if split is not None:
                raise TextDataError(f"'{url}' is one text, without splits; leave --split out")
            return [RemoteFile(url)]
        names = sorted(system.find(top))
    root, groups = PurePosixPath(top), dict[str, list[RemoteFile]]()
    for name in names:
        path = PurePosixPath(name)
        if is_data(path, root):
            found = RemoteFile(str(system.unstrip_protocol(name)))
            groups.setdefault(split_named(path.relative_to(root)), []).append(found)
    if not groups:
        raise TextDataError(f"'{url}' holds no file of text; give one, or its folder")
    return groups[choose_split(url, list(groups), split, prefer)]
