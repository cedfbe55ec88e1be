"""Checkpoints of a training run: one safetensors file, with its JSON values in the header, replaced atomically."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attlas.data.files import atomic_path
from attlas.errors import CheckpointError, ConfigError, StorageError
from attlas.saes.training.buffer import MixingBuffer
from attlas.saes.training.parallel.share import Share
from attlas.saes.training.trainer import SAETrainer

NAME = "checkpoint.safetensors"
NOT_SHARED = Share()


def save_checkpoint(
    folder: Path,
    step: int,
    trainers: list[SAETrainer],
    buffer: MixingBuffer,
    config: dict[str, Any],
    rows: list[Any],
    share: Share = NOT_SHARED,
) -> bool:
    """Write the whole state after `step` steps; of several processes, all of them call it and the first writes.

    False, and the earlier checkpoint kept, when a weight is not finite, or, with a warning, when there is no room.
    """
    if not share.everyone(all(trainer.finite() for trainer in trainers)):
        return False
    tensors, values = buffer.state()
    kept: dict[str, Any] = {"step": step, "buffer": values, "config": config, "rows": rows, "trainees": {}}
    for trainer in trainers:
        more, kept["trainees"][trainer.name] = trainer.state()
        tensors |= more
    tensors, kept["trainees"] = share.state(tensors, kept["trainees"])
    if not share.group.first:
        return True
    # safetensors refuses tensors that share memory, and the buffer's rows are a slice of a larger block
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_path(folder / NAME) as temporary:
            save_file(tensors, temporary, metadata={"state": json.dumps(kept)})
    except StorageError as error:
        warnings.warn(f"no checkpoint of step {step}: {error}; training goes on", stacklevel=2)
        return False
    return True


def has_checkpoint(folder: Path) -> bool:
    """Whether a training left one in this folder."""
    return (folder / NAME).is_file()


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, values), or None where there is no checkpoint.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            values = json.loads(handle.metadata()["state"])
            return {name: handle.get_tensor(name) for name in handle.keys()}, values  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"'{path}' is damaged ({error}); delete it to start over") from error


def require_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise for a checkpoint of another configuration than this run's.

    Raises:
        ConfigError: the first difference, by name.
    """
    for key in sorted(now.keys() | before.keys()):
        was, wanted = before.get(key), now.get(key)
        if was != wanted:
            raise ConfigError(
                f"the checkpoint in '{folder}' has {key}={was!r} and this run {wanted!r}; start without resume"
            )


def restore_checkpoint(
    folder: Path, trainers: list[SAETrainer], buffer: MixingBuffer, config: dict[str, Any]
) -> tuple[int, list[Any]]:
    """Bring trainers and buffer to the saved step; (0, []) when there is no checkpoint.

    Raises:
        ConfigError: the checkpoint is of another configuration, model or data; the first difference is named.
        CheckpointError: the file is damaged or incomplete.
    """
    found = read_checkpoint(folder)
    if found is None:
        return 0, []
    tensors, values = found
    require_same(folder, values["config"], config)
    for trainer in trainers:
        if trainer.name not in values["trainees"]:
            raise CheckpointError(f"the checkpoint in '{folder}' does not hold '{trainer.name}'; start without resume")
        trainer.restore(tensors, values["trainees"][trainer.name])
    buffer.restore(tensors, values["buffer"], trainers[0].tokens_since_fired_F.device)
    return int(values["step"]), list(values["rows"])
