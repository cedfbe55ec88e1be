"""Which files of a dataset folder make up one split.

A folder that `datasets.save_to_disk` wrote says so itself (`dataset_dict.json`, `state.json`), so that its caches and
other splits stay out. Elsewhere splits are told from names, as the hub lays them out: `data/train-00000-of-00002.parquet`,
`name-test.arrow`, `validation/0.jsonl`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import Any

from attlas.data.text_files import COMPRESSED, STRUCTURED, kind_of
from attlas.errors import TextDataError, nearest

_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
_SYNONYMS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
_WORDS = "train|training|validation|valid|val|dev|test|testing"
_WORD = re.compile(rf"(?:^|[^a-z])({_WORDS})(?:[^a-z]|$)", re.IGNORECASE)
_SHARD = re.compile(r"^(?:.*-)?([A-Za-z0-9_.]+)-\d{5}-of-\d{5}$")


def split_files(folder: Path, split: str | None = None, prefer: str | None = None) -> list[Path]:
    """Files of one split of a dataset folder, in order.

    Args:
        folder: of `save_to_disk`, of the hub, or with files of one kind.
        split: its name; None takes the only one.
        prefer: the split to take where there are several and none is named.

    Raises:
        TextDataError: no files, no such split, or several and none named; says which exist.
    """
    if (folder / "dataset_dict.json").is_file():
        listed = _json(folder / "dataset_dict.json").get("splits")
        names = [str(name) for name in listed] if isinstance(listed, list) else []
        return _of_state(folder / choose_split(folder, names, split, prefer))
    if (folder / "state.json").is_file():
        own = _json(folder / "state.json").get("_split")
        if split is not None and own is not None and split != own:
            raise TextDataError(f"'{folder}' is the split '{own}', not '{split}'; leave --split out")
        return _of_state(folder)
    inner = _only_set(folder)
    return _by_name(folder, split, prefer) if inner == folder else split_files(inner, split, prefer)


def _only_set(folder: Path) -> Path:
    """The data set below a cache folder of the hub or of `datasets`; the folder itself where it is none.

    Raises:
        TextDataError: there are several (other data, or versions of one).
    """
    if (folder / "snapshots").is_dir() and (folder / "refs" / "main").is_file():
        return folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    found = sorted(
        {
            path.parent
            for name in ("dataset_dict.json", "state.json", "dataset_info.json")
            for path in folder.rglob(name)
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        }
    )
    tops = [path for path in found if not any(other in path.parents for other in found)]
    if folder in tops or not tops:
        return folder
    if len(tops) > 1:
        raise TextDataError(f"'{folder}' holds {len(tops)} data sets; give one of them, such as '{tops[0]}'")
    return tops[0]


def _of_state(folder: Path) -> list[Path]:
    """The files that a saved data set says are its own."""
    state = _json(folder / "state.json")
    entries = state.get("_data_files")
    names = [e.get("filename") if isinstance(e, dict) else None for e in entries] if isinstance(entries, list) else []
    if not names or not all(isinstance(n, str) for n in names):
        raise TextDataError(f"'{folder / 'state.json'}' names no data files; save the data set again")
    if state.get("_indices_data_files"):
        raise TextDataError(f"'{folder}' is a selection of rows; call flatten_indices() before save_to_disk")
    files = [folder / str(name) for name in names]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise TextDataError(f"'{folder}' lacks {missing[0]}, which its state.json names; copy the whole folder")
    return files


def _by_name(folder: Path, split: str | None, prefer: str | None) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and is_data(p, folder))
    if not files:
        raise TextDataError(f"folder '{folder}' holds no {', '.join('.' + s for s in STRUCTURED)} file")
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(split_named(file.relative_to(folder)), []).append(file)
    chosen = groups[choose_split(folder, list(groups), split, prefer)]
    kinds = sorted({kind_of(file) for file in chosen})
    if len(kinds) > 1:
        raise TextDataError(f"folder '{folder}' holds {' and '.join('.' + k for k in kinds)} files; give one of them")
    return chosen


def is_data(file: PurePath, top: PurePath) -> bool:
    """Whether a file of a folder holds documents; caches, hidden files and metadata do not."""
    inside = file.relative_to(top)
    if any(part.startswith((".", "__MACOSX")) for part in inside.parts) or file.name.lower() in _METADATA:
        return False
    return kind_of(file) in STRUCTURED and not (file.suffix == ".arrow" and file.name.startswith(("cache-", "tmp")))


def split_named(inside: PurePath) -> str:
    """Split that a name contains, its own before its folders'; "" where none does."""
    stem = inside.stem if inside.suffix not in COMPRESSED else PurePath(inside.stem).stem
    shard = _SHARD.match(stem)
    for name in ([shard[1]] if shard else []) + [stem, *reversed(inside.parts[:-1])]:
        found = _WORD.search(name)
        if found:
            return _SYNONYMS.get(found[1].lower(), found[1].lower())
    return shard[1] if shard else ""


def choose_split(folder: object, names: list[str], split: str | None, prefer: str | None) -> str:
    """The split to take of those there (see `split_files`)."""
    spoken = [name or "(files of no split)" for name in names]
    if split is not None:
        for name in (split, _SYNONYMS.get(split.lower(), split)):
            if name in names:
                return name
        raise TextDataError(f"'{folder}' has no split '{split}'; there is {', '.join(spoken)}{nearest(split, names)}")
    if len(names) == 1:
        return names[0]
    if prefer in names:
        return str(prefer)
    said = ", ".join(spoken) or "none"
    raise TextDataError(f"'{folder}' has the splits {said}; name one with --split")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TextDataError(f"'{path}' cannot be read ({error}); copy the whole folder again") from error
    if not isinstance(found, dict):
        raise TextDataError(f"'{path}' holds no JSON object; copy the whole folder again")
    return found


def refuse_split(source: object, split: str | None) -> None:
    """A single file has no splits.

    Raises:
        TextDataError: one is named.
    """
    if split is not None:
        raise TextDataError(f"'{source}' is one text, without splits; leave --split out")
