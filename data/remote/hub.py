"""Data sets of the Hugging Face hub by name: `org/name`, `org/name:config`, `org/name:config/split`, read as they are needed.

The hub keeps every public data set as Parquet too, in a branch of its own, a folder a configuration and below it a folder a
split: https://huggingface.co/docs/dataset-viewer/parquet. Where that branch is missing, the repository's own files are taken.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import PurePosixPath

from attlas.data.remote.file import RemoteFile
from attlas.data.remote.folder import remote_files
from attlas.data.text_files import kind_of
from attlas.data.text_folders import choose_split
from attlas.errors import TextDataError, nearest

_ID = re.compile(r"^([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w.-]+)(?:/([\w.-]+))?)?$")
_PARTIAL = "partial-"  # of a split of which the hub made only the first gigabytes into Parquet


def is_hub_id(source: object) -> bool:
    """Whether a source that is no file here may be a data set of the hub.

    Example:
        >>> from attlas.data.remote.hub import is_hub_id
        >>> [is_hub_id(name) for name in ("org/name", "org/name:config/train", "texts/a.jsonl", "name", "/a/b")]
        [True, True, False, False, False]
    """
    found = _ID.match(str(source))
    return found is not None and kind_of(PurePosixPath(found[1])) == "text" and not found[1].endswith((".txt", ".gz"))


def hub_files(source: str, split: str | None, prefer: str | None) -> Sequence[RemoteFile]:
    """The Parquet files of one split of one configuration.

    Args:
        source: a hub id (see `is_hub_id`).
        split: its name, where the id names none.
        prefer: the split to take where there are several and none is named.

    Raises:
        TextDataError: there is no such data set, configuration or split, or the hub cannot be reached.
    """
    found = _ID.match(source)
    assert found is not None
    repo, config, named = found[1], found[2], found[3]
    if named and split and named != split:
        raise TextDataError(f"'{source}' names the split '{named}', --split '{split}'; give one of them")
    split = named or split
    parts = _converted(source, repo)
    if not parts:
        url = f"hf://datasets/{repo}" + (f"/{config}" if config else "")
        try:
            return remote_files(url, split, prefer)
        except TextDataError as error:
            why = str(error).replace(f"'{url}'", "it")
            raise TextDataError(f"'{source}' is no file here, and of the hub's data sets {why}") from error
    splits = parts[_configuration(source, list(parts), config)]
    whole = {name.removeprefix(_PARTIAL): name for name in splits}
    chosen = whole[choose_split(source, list(whole), split, prefer)]
    if chosen.startswith(_PARTIAL):
        warnings.warn(
            f"the hub has only the first part of '{source}' as Parquet; hf://datasets/{repo} has the files themselves",
            stacklevel=2,
        )
    return splits[chosen]


def _configuration(source: str, there: list[str], config: str | None) -> str:
    if config is None and (len(there) == 1 or "default" in there):
        return there[0] if len(there) == 1 else "default"
    if config not in there:
        wanted = f"no configuration '{config}'" if config else "several configurations"
        hint = nearest(config, there) if config else ""
        raise TextDataError(
            f"'{source}' has {wanted}: {', '.join(there)}; name one as {source.split(':')[0]}:NAME{hint}"
        )
    return config


def _converted(source: str, repo: str) -> dict[str, dict[str, list[RemoteFile]]]:
    """Configuration → split → files of the hub's own Parquet; empty where there is none."""
    try:
        from huggingface_hub import HfFileSystem

        # by its class: fsspec would import it by a way that prints a warning
        system = HfFileSystem()
        names = sorted(system.find(f"datasets/{repo}@refs/convert/parquet"))
    except FileNotFoundError:
        return {}
    except Exception as error:  # of the network, of rights, of the hub's client: many classes
        line = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise TextDataError(
            f"'{source}' is no file here, and the hub cannot be asked for a data set of that name "
            f"({type(error).__name__}: {line:.80}); check name and network, or fetch it and give its folder"
        ) from error
    found: dict[str, dict[str, list[RemoteFile]]] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix == ".parquet" and len(path.parts) >= 3:
            config, split = path.parts[-3:-1]
            found.setdefault(config, {}).setdefault(split, []).append(RemoteFile(f"hf://{name}"))
    return found
