"""One entry of a workspace's manifest, and the checks it passes before anything trusts it."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attlas.data.files import check_name
from attlas.errors import WorkspaceError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_INT64 = range(-(2**63), 2**64)


@dataclass(frozen=True)
class Ref:
    """A model or a data set: the name a person uses, and a hash of its content."""

    name: str
    hash: str


@dataclass(frozen=True)
class Run:
    """One entry of the manifest.

    Attributes:
        id: `<kind>-<model name>-<key>`; equal inputs give equal ids.
        kind: which job wrote it, such as "sae", "features", "entropy".
        model: the model analysed.
        data: the tokens or images used, or None.
        config: the job's configuration, as JSON.
        seed: the seed, or None where nothing is random.
        parents: ids of runs this one read (features → its SAE).
        tables: names of Parquet tables.
        arrays: names of safetensors files.
        summary: headline numbers, for overview pages.
        created: ISO 8601, UTC.
        attlas_version: version of the writer.
        folder: name of its folder under `runs/`: the id, or id.2, id.3 … where it was replaced; "" before it is written.
        files: path in that folder → {"bytes", "sha256"}; empty for runs written before these were kept.
    """

    id: str
    kind: str
    model: Ref
    data: Ref | None = None
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    parents: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    attlas_version: str = ""
    folder: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Of all its files."""
        return sum(int(file.get("bytes", 0)) for file in self.files.values())

    @classmethod
    def from_json(cls, entry: Any) -> Run:
        """A run from its JSON; unknown keys are passed over.

        Raises:
            WorkspaceError: a value is missing, of the wrong type, or not possible; which, and of which run.
        """
        if not isinstance(entry, Mapping):
            raise WorkspaceError(f"an entry of 'runs' is {_shown(entry)}; it must be an object")
        check = _Check(entry, f"run {_shown(entry.get('id'))}")
        run = cls(
            id=check.name("id"),
            kind=check.text("kind", needed=True),
            model=check.ref("model") or Ref("", ""),
            data=check.ref("data") if entry.get("data") is not None else None,
            config=check.object("config"),
            seed=check.integer("seed"),
            parents=check.names("parents"),
            tables=check.names("tables"),
            arrays=check.names("arrays"),
            summary=check.object("summary"),
            created=check.moment("created"),
            attlas_version=check.text("attlas_version"),
            folder=check.name("folder") if "folder" in entry else check.name("id"),
            files=check.files("files"),
        )
        if not re.fullmatch(re.escape(run.id) + r"(\.\d+)?", run.folder):
            check.refuse("folder", f"be {run.id} or {run.id}.2, .3 …")
        for key, end in (("tables", "parquet"), ("arrays", "safetensors")):
            absent = [name for name in getattr(run, key) if f"{name}.{end}" not in run.files]
            if run.files and absent:
                raise WorkspaceError(
                    f"{check.who}: '{key}' names {absent[0]!r}, and 'files' has no '{absent[0]}.{end}'"
                )
        return run


class _Check:
    """Values of a JSON object, each as the type it must have."""

    def __init__(self, entry: Mapping[str, Any], who: str) -> None:
        self.entry = entry
        self.who = who

    def refuse(self, key: str, must: str) -> Any:
        told = f"is {_shown(self.entry[key])}" if key in self.entry else "is missing"
        raise WorkspaceError(f"{self.who}: '{key}' {told}; it must {must}")

    def text(self, key: str, *, needed: bool = False) -> str:
        value = self.entry.get(key, None if needed else "")
        return value if isinstance(value, str) and (value or not needed) else self.refuse(key, "be a text")

    def name(self, key: str) -> str:
        value = self.entry.get(key)
        try:
            return check_name(value, key)
        except WorkspaceError:
            return self.refuse(key, "be one plain file name")

    def names(self, key: str) -> tuple[str, ...]:
        values = self.entry.get(key, [])
        try:
            return (
                tuple(check_name(value, key) for value in values) if isinstance(values, list) else self.refuse(key, "")
            )
        except WorkspaceError:
            return self.refuse(key, "be a list of plain file names")

    def object(self, key: str) -> dict[str, Any]:
        value = self.entry.get(key, {})
        return value if isinstance(value, dict) else self.refuse(key, "be an object")

    def integer(self, key: str) -> int | None:
        value = self.entry.get(key)
        fits = value is None or (isinstance(value, int) and not isinstance(value, bool) and value in _INT64)
        return value if fits else self.refuse(key, "be a whole number of at most 64 bits, or null")

    def moment(self, key: str) -> str:
        value = self.text(key)
        try:
            return value if not value or datetime.datetime.fromisoformat(value) else ""
        except ValueError:
            return self.refuse(key, "be a time in ISO 8601")

    def ref(self, key: str) -> Ref | None:
        value = self.entry.get(key)
        if isinstance(value, dict) and all(isinstance(value.get(part), str) for part in ("name", "hash")):
            return Ref(value["name"], value["hash"])
        return self.refuse(key, "have a name and a hash, both texts")

    def files(self, key: str) -> dict[str, dict[str, Any]]:
        found = self.object(key)
        for path, kept in found.items():
            size, sha256 = (kept.get("bytes"), kept.get("sha256")) if isinstance(kept, dict) else (None, None)
            known = isinstance(size, int) and isinstance(sha256, str) and _SHA256.fullmatch(sha256)
            if not known or not path or not all(_is_name(part) for part in path.split("/")):
                raise WorkspaceError(
                    f"{self.who}: 'files' has {_shown(path)}: {_shown(kept)}; it must give bytes and sha256"
                )
        return found


def _is_name(part: Any) -> bool:
    try:
        check_name(part, "file")
    except WorkspaceError:
        return False
    return True


def _shown(value: Any) -> str:
    """A value of any size on one short line."""
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        return f"a number of {value.bit_length()} bits"
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def jsonable(value: Any) -> Any:
    """Turn a config (dataclass, tuple, path, numpy scalar …) into plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def run_key(kind: str, model: Ref, data: Ref | None, config: Mapping[str, Any], parents: tuple[str, ...]) -> str:
    """Eight hex digits that are equal exactly when a run would compute the same thing."""
    payload = json.dumps([kind, model.hash, data.hash if data else None, config, parents], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:8]


def run_id(kind: str, model: Ref, key: str) -> str:
    """`<kind>-<model name>-<key>`, a plain file name whatever the model is called."""
    slug = "".join(c if c.isalnum() else "-" for c in Path(model.name).name)[:48].strip("-") or "model"
    return f"{kind}-{slug}-{key}"
