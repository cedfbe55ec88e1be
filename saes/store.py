"""Training from activations on disk: captured once, read as often as wanted, checked as they are read.

    store/
      manifest.json          model, data, hooks, type, and every shard's rows and SHA-256
      shard-00000.safetensors  one forward pass: {hook: [rows, D]}

The manifest is written last, so a folder without one is unfinished and is written anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save_file

from attlas.data.files import atomic_path, sha256_file, write_text_atomic
from attlas.data.progress import Track, no_track
from attlas.errors import CheckpointError, ConfigError
from attlas.saes.activations import Rows, capture_rows
from attlas.saes.buffer import Source
from attlas.saes.sources import Inputs
from attlas.saes.train_config import TrainConfig

if TYPE_CHECKING:
    from attlas.interp import HookedModel

FORMAT = 1


def store_source(
    model: HookedModel, inputs: Inputs, hooks: Sequence[str], config: TrainConfig, track: Track = no_track
) -> Source:
    """Chunks read from the folder `config.store`, which is written first where it is not there.

    Raises:
        ConfigError: the folder holds activations of another model, data, hooks or type; or the disk is too small.
        CheckpointError: a shard is damaged (when it is read).
    """
    folder = config.store
    assert folder is not None
    wanted = {
        "format": FORMAT,
        "model": model.weight_hash,
        "data": inputs.ref.hash,
        "hooks": list(hooks),
        "dtype": config.activation_dtype,
        "skip_positions": config.skip_positions,
        "inputs": len(inputs.tensor),
    }
    manifest = _read_manifest(folder)
    if manifest is None:
        manifest = _write(folder, model, inputs, hooks, config, wanted, track)
    for key, value in wanted.items():
        if manifest.get(key) != value:
            raise ConfigError(
                f"the activation store '{folder}' has {key}={manifest.get(key)!r}, this run needs {value!r}; "
                "give another folder or delete it"
            )
    shards: list[dict[str, Any]] = manifest["shards"]
    verified: set[int] = set()

    def source(chunk: int) -> Rows:
        epoch, part = divmod(chunk, len(shards))
        order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))
        number = int(order[part])
        path = folder / shards[number]["file"]
        if number not in verified and (not path.is_file() or sha256_file(path) != shards[number]["sha256"]):
            raise CheckpointError(f"'{path}' is damaged or missing; delete '{folder}' to capture it again")
        verified.add(number)
        return {name: rows.to(model.device) for name, rows in load(path.read_bytes()).items()}

    return source


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' is damaged ({error}); delete '{folder}' to capture it again") from error


def _write(
    folder: Path,
    model: HookedModel,
    inputs: Inputs,
    hooks: Sequence[str],
    config: TrainConfig,
    wanted: dict[str, Any],
    track: Track,
) -> dict[str, Any]:
    """Capture everything once. The size is known, stated and compared with the free disk before the first shard."""
    dtype = getattr(torch, config.activation_dtype)
    batches = inputs.tensor.split(config.capture_batch)
    probe = capture_rows(model, batches[0], hooks, config.skip_positions)
    a_row = sum(rows.shape[-1] for rows in probe.values()) * dtype.itemsize
    needed = a_row * len(next(iter(probe.values()))) // len(batches[0]) * len(inputs.tensor)
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed * 1.02 > free:
        raise ConfigError(
            f"the activation store '{folder}' needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; "
            "take fewer tokens or hooks, or --activation-dtype bfloat16"
        )
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, batch in enumerate(track(batches, f"writing {needed / 1e9:.2f} GB of activations", len(batches))):
        rows = capture_rows(model, batch, hooks, config.skip_positions)
        path = folder / f"shard-{number:05d}.safetensors"
        with atomic_path(path) as temporary:
            save_file({name: r.to(dtype).cpu().contiguous() for name, r in rows.items()}, temporary)
        shards.append({"file": path.name, "rows": len(next(iter(rows.values()))), "sha256": sha256_file(path)})
    manifest = {**wanted, "bytes": needed, "shards": shards}
    write_text_atomic(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest
