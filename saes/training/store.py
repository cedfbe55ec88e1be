"""Training from activations on disk, or behind a URL: captured once, read as often as wanted, checked as they are read.

    store/
      capture.json           what is captured: model, data, hooks, type; written first
      shards.jsonl           a line a finished shard: file, rows, SHA-256; an interrupted capture goes on after them
      manifest.json          the two in one, written last: without it the store is unfinished
      shard-00000.safetensors  one forward pass: {hook: [rows, D]}

A folder that holds anything else is a stranger's and is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from attlas.data.dataset import Batch, Dataset
from attlas.data.files import check_name
from attlas.data.models_catalog import lasting_name
from attlas.data.processes.group import ALONE, Group
from attlas.data.processes.turns import in_turn
from attlas.data.progress import Track, no_track
from attlas.data.remote import Folder
from attlas.data.remote.place import Place, place_of
from attlas.data.streams.ahead import ahead
from attlas.errors import CheckpointError, ConfigError, WorkspaceError
from attlas.saes.activations import Rows, capture_rows
from attlas.saes.positions import positions_for
from attlas.saes.training.ahead import SideStream
from attlas.saes.training.buffer import Source
from attlas.saes.training.config import TrainConfig

if TYPE_CHECKING:
    from attlas.interp import HookedModel

FORMAT = 1
_PLAN, _DONE, _MANIFEST = "capture.json", "shards.jsonl", "manifest.json"


def store_source(
    model: HookedModel,
    inputs: Dataset,
    hooks: Sequence[str],
    config: TrainConfig,
    track: Track = no_track,
    group: Group = ALONE,
) -> Source:
    """Chunks read from the folder `config.store`, which is written first where it is not there.

    Args:
        hooks: all hooks to capture, or some of those that the finished store holds.
        group: processes that capture together, each shard by one of them; all see the folder.

    Raises:
        ConfigError: the folder holds activations of another model, data, hooks or type, or other files; or the disk
            is too small.
        CheckpointError: a shard is damaged (when it is read).
    """
    folder = config.store
    assert folder is not None
    wanted = _wanted(model, inputs, hooks, config)
    manifest = read_manifest(folder)
    if any(group.all_of(manifest is None)):
        _write(folder, model, inputs, hooks, config, wanted, track, group)
        group.of_first(None)
        manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(f"process {group.rank} does not see '{folder}'; give a folder that all processes share")
    held = list(manifest["hooks"])
    agreed = {"hooks": held, "inputs": manifest["inputs"]} if set(hooks) <= set(held) else {}
    _agree(folder, manifest, wanted | agreed)
    shards: list[dict[str, Any]] = manifest["shards"]
    verified: set[int] = set()
    place = place_of(folder)

    def source(chunk: int) -> Rows:
        epoch, part = divmod(chunk, len(shards))
        order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))
        number = int(order[part])
        name, packed = shards[number]["file"], place.read(shards[number]["file"])
        if packed is None or (number not in verified and _sha256(packed) != shards[number]["sha256"]):
            raise CheckpointError(f"'{place.path(name)}' is damaged or missing; delete '{folder}' to capture it again")
        verified.add(number)
        rows = load(packed)
        return {name: rows[name].to(model.device) for name in hooks}

    return source


def _sha256(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()


def check_store(folder: Folder) -> None:
    """Refuse a folder that is neither new, empty, nor a store of ours, or that cannot be written; before any work.

    Args:
        folder: local, or a URL that fsspec knows (`s3://bucket/activations`).

    Raises:
        ConfigError: it holds something else, which is named.
        StorageError: it is read-only, its disk is full, or it cannot be reached.
        MissingExtraError: the URL's protocol needs a package.
    """
    place = place_of(folder)
    if read_manifest(folder) is None:
        names = place.names()
        known = (_PLAN, _DONE) if _PLAN in names else ()
        strangers = [name for name in names if name not in known and not (known and _is_shard(name))]
        if strangers:
            raise ConfigError(
                f"'{folder}' holds {strangers[0]!r} and no activation store of attlas; give a new or empty folder"
            )
    place.check()


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """The manifest of a finished store, or None where there is none.

    Raises:
        ConfigError: the manifest.json there is another program's.
        CheckpointError: it is damaged.
        StorageError: a URL cannot be reached.
    """
    place = place_of(folder)
    path, text = place.path(_MANIFEST), place.read(_MANIFEST)
    if text is None:
        return None
    try:
        manifest = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is damaged ({error}); delete '{folder}' to capture it again") from error
    if not isinstance(manifest, dict) or "shards" not in manifest or "format" not in manifest:
        raise ConfigError(f"'{path}' is not an activation store's; give a new or empty folder")
    types = {"format": int, "model": str, "data": str, "hooks": list, "inputs": int, "shards": list, "bytes": int}
    odd = next((key for key, kind in types.items() if not isinstance(manifest.get(key), kind)), None)
    if odd is None and not all(isinstance(hook, str) for hook in manifest["hooks"]):
        odd = "hooks"
    if odd is None and not (manifest["shards"] and all(_is_record(shard) for shard in manifest["shards"])):
        odd = "shards"
    if odd is None and not isinstance(manifest.get("settings", {}), dict):
        odd = "settings"
    if odd is not None:
        raise CheckpointError(f"'{path}': '{odd}' is damaged; delete '{folder}' to capture it again")
    return dict(manifest)


def _is_record(shard: Any) -> bool:
    try:
        check_name(shard["file"], "shard")
        return isinstance(shard["rows"], int) and isinstance(shard["sha256"], str)
    except (WorkspaceError, KeyError, TypeError):
        return False


def _is_shard(name: str) -> bool:
    return name.lstrip(".").startswith("shard-") or name.startswith((f".{_DONE}", f".{_MANIFEST}", f".{_PLAN}"))


def _wanted(model: HookedModel, inputs: Dataset, hooks: Sequence[str], config: TrainConfig) -> dict[str, Any]:
    """What a store must hold so that training on it equals training on the model itself."""
    positions = positions_for(model, config.skip_positions, config.exclude_tokens)
    return {
        "format": FORMAT,
        "model": model.weight_hash,
        "data": inputs.ref.hash,
        "hooks": list(hooks),
        "dtype": config.activation_dtype,
        "skip_positions": positions.skip,
        "exclude_tokens": list(positions.names),
        "inputs": len(inputs),
    }


def _agree(folder: Folder, manifest: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if manifest.get(key, [] if key == "exclude_tokens" else None) != value:
            raise ConfigError(
                f"the activation store '{folder}' has {key}={manifest.get(key)!r}, this run needs {value!r}; "
                "give another folder or delete it"
            )


def _write(
    folder: Folder,
    model: HookedModel,
    inputs: Dataset,
    hooks: Sequence[str],
    config: TrainConfig,
    wanted: dict[str, Any],
    track: Track,
    group: Group,
) -> None:
    """Capture everything once. The size is known, stated and compared with the free disk before the first shard."""
    if group.first:
        check_store(folder)
    place = place_of(folder)
    positions = positions_for(model, config.skip_positions, config.exclude_tokens)
    positions.require_some(inputs)
    dtype = getattr(torch, config.activation_dtype)
    batches = inputs.minibatches(config.capture_batch)
    plan = {**wanted, "capture_batch": config.capture_batch}
    done = group.of_first(_finished(folder, place, plan) if group.first else [])
    first = capture_rows(model, batches[0].inputs, hooks, positions)
    a_row = sum(rows.shape[-1] for rows in first.values()) * dtype.itemsize  # padding counted in: at most so much
    needed = a_row * len(next(iter(first.values()))) // len(batches[0]) * len(inputs)
    left = needed * (len(batches) - len(done)) // len(batches)
    free = place.free()
    if free is not None and left * 1.02 > free:
        raise ConfigError(
            f"the activation store '{folder}' needs {left / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; "
            "take fewer tokens or hooks, or --activation-dtype bfloat16"
        )
    if group.first:
        place.write_text(_PLAN, json.dumps(plan, indent=1) + "\n")
        place.write_text(_DONE, "".join(json.dumps(shard) + "\n" for shard in done))
    group.of_first(None)

    side = SideStream(model.device)

    def capture(numbered: tuple[int, Batch]) -> tuple[int, dict[str, Tensor], Any]:
        number, batch = numbered
        with side.working():
            rows = capture_rows(model, batch.inputs, hooks, positions, batch.mask)
            return number, *side.to_host(rows, dtype)

    def write(captured: tuple[int, dict[str, Tensor], Any]) -> dict[str, Any]:
        number, held, event = captured
        if event is not None:
            event.synchronize()
        digest = place.write(_shard(number), lambda path: save_file(held, path))
        return {"file": _shard(number), "rows": len(next(iter(held.values()))), "sha256": digest}

    numbered = list(enumerate(batches))
    if group.size == 1 and (model.device.type == "cuda" or isinstance(folder, str)):
        # one shard is written, or sent, while a thread captures the next
        shards = _each(write, ahead(map(capture, numbered[len(done) :]), name="attlas-capture"))
    else:
        found = in_turn(group, numbered, lambda item: write(capture(item)), first=len(done))
        shards = (shard for _, shard in found)
    for shard in track(shards, f"writing {needed / 1e9:.2f} GB of activations", len(batches) - len(done)):
        done.append(shard)
        place.add_line(_DONE, json.dumps(shard))
    if not group.first:
        return
    manifest = {**wanted, "bytes": needed, "settings": _settings(inputs, config), "shards": done}
    place.write_text(_MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for name in (_PLAN, _DONE):
        place.remove(name)


def _each(write: Callable[[Any], Any], coming: Generator[Any, None, None]) -> Iterator[Any]:
    """What `write` makes of each; the thread behind them ends with it."""
    with contextlib.closing(coming):
        yield from map(write, coming)


def _shard(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _finished(folder: Folder, place: Place, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The shards, from the first on, that an interrupted capture of the same plan wrote whole.

    Raises:
        ConfigError: the interrupted capture was of something else.
    """
    plan_there = place.read(_PLAN)
    if plan_there is None:
        return []
    try:
        before = json.loads(plan_there.decode())
        lines = (place.read(_DONE) or b"").decode().splitlines()
    except ValueError as error:
        raise CheckpointError(f"'{place.path(_PLAN)}' is damaged ({error}); delete '{folder}'") from error
    _agree(folder, before if isinstance(before, dict) else {}, plan)
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        try:
            shard = json.loads(line)
        except ValueError:
            break
        packed = place.read(_shard(number)) if _is_record(shard) and shard["file"] == _shard(number) else None
        if packed is None or _sha256(packed) != shard["sha256"]:
            break
        found.append(shard)
    return found


def _settings(inputs: Dataset, config: TrainConfig) -> dict[str, Any]:
    """What was asked for, so that a training takes it over (see `adopt_store`)."""
    names = ("text", "column", "split", "images", "n_tokens", "seq_len", "pad", "chat", "seed")
    kept = {name: getattr(config, name) for name in names}
    return {"data_name": inputs.ref.name, "model": lasting_name(config.model), **kept}


def adopt_store(config: TrainConfig, given: Collection[str] | None = None) -> TrainConfig:
    """The configuration to record: a model's folder as an absolute path, and what a finished store already settles
    (model, hooks, text, positions, type) taken over.

    Args:
        config: as asked for; without a finished store it comes back as it is.
        given: names of the fields a person set, which must agree with the store; None takes those that differ from
            the defaults.

    Raises:
        ConfigError: some disagree; all are named, with the values to use.
    """
    config = dataclasses.replace(config, model=lasting_name(config.model))
    manifest = read_manifest(config.store) if config.store is not None else None
    if manifest is None:
        return config
    settings = manifest.get("settings", {})
    there = {
        name: settings[name]
        for name in ("model", "text", "column", "split", "images", "seq_len", "pad", "chat")
        if name in settings
    }
    there |= {"activation_dtype": manifest.get("dtype"), "skip_positions": manifest.get("skip_positions")}
    there["exclude_tokens"] = tuple(manifest.get("exclude_tokens") or ())
    default = TrainConfig()
    set_here = given if given is not None else [n for n in there if getattr(config, n) != getattr(default, n)]
    odd = [name for name in there if name in set_here and name != "model" and getattr(config, name) != there[name]]
    held: list[str] = manifest["hooks"]
    hooks_given = "hooks" in given if given is not None else config.hooks != default.hooks
    missing = [hook for hook in config.hooks if not fnmatch.filter(held, hook)] if hooks_given else []
    if odd or missing:
        use = [_typed(name, there[name]) for name in odd] + ([f"--hooks {' '.join(held)}"] * bool(missing))
        raise ConfigError(
            f"the activation store '{config.store}' was captured otherwise ({', '.join([*odd, *missing])}); leave these "
            f"out, or give {' '.join(use)}"
        )
    taken = {name: value for name, value in there.items() if name not in set_here}
    hooks = tuple(hook for hook in held if any(fnmatch.fnmatch(hook, p) for p in config.hooks)) if hooks_given else held
    return dataclasses.replace(config, **taken, hooks=tuple(hooks))


def _typed(name: str, value: Any) -> str:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {' '.join(value) if isinstance(value, tuple) else value}"


@dataclasses.dataclass(frozen=True)
class StoredInputs(Dataset):
    """What a finished store was captured on: its name, hash and number of rows; the rows themselves are not in the store.

    Attributes:
        name, hash: of the text or images.
        n: sequences or images.
        folder: the store.
    """

    name: str
    hash: str
    n: int
    folder: Folder

    labels = mask = class_names = targets = None

    def __len__(self) -> int:
        return self.n

    @property
    def tensor(self) -> torch.Tensor:
        """Raises ConfigError: only their activations are stored."""
        raise ConfigError(f"'{self.folder}' holds activations of '{self.name}', not the data; give the data itself")

    def _part(self, rows: torch.Tensor) -> StoredInputs:
        raise ConfigError(f"'{self.folder}' is one store of '{self.name}' and cannot be divided; give the data itself")


def stored_inputs(config: TrainConfig) -> StoredInputs | None:
    """What the finished store of a configuration was captured on; None without such a store."""
    manifest = read_manifest(config.store) if config.store is not None else None
    if manifest is None or config.store is None:
        return None
    name = manifest.get("settings", {}).get("data_name", config.text)
    return StoredInputs(str(name), manifest["data"], manifest["inputs"], config.store)
