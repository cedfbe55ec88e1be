"""Measures over one training's checkpoints: one model in memory at a time, all on the first one's data, gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attlas.analyses.common.pass_state import load_state, save_state
from attlas.data.checkpoints import Checkpoint
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track
from attlas.data.text import TokenDataset
from attlas.data.workspace import Ref
from attlas.errors import CheckpointError
from attlas.interp import HookedModel, load_model
from attlas.interp.config import ModelConfig
from attlas.interp.load import folder_hash

Data = TokenDataset | ImageDataset
Shape = tuple[str, int, int]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Opening:
    """How checkpoints are opened, and where what was measured is kept.

    Attributes:
        device, dtype: as `load_model` takes them.
        state: folder of a file a checkpoint, written as soon as it is measured; the same measure goes on from them.
        settings: what the measure depends on besides data and weights; files of another are refused.
    """

    device: str = "auto"
    dtype: str = "float32"
    state: Path | None = None
    settings: str = ""


def over_checkpoints(
    checkpoints: tuple[Checkpoint, ...],
    data: Callable[[HookedModel], Data],
    measure: Callable[[HookedModel, Data], Arrays],
    shape: Callable[[ModelConfig], Shape],
    told: Callable[[Shape], str],
    opening: Opening,
    track: Track,
) -> tuple[list[Arrays], Ref]:
    """(what `measure` finds of every checkpoint, the last model).

    The first checkpoint is always opened, since it makes the data; the others where nothing is kept of them.

    Args:
        shape: what must be alike in all of them; `told` says it of one that differs.

    Raises:
        CheckpointError: a checkpoint's shape differs from the first one's.
        ConfigError: what is kept is of another measure, other data or other weights.
    """
    first: Shape | None = None
    dataset: Data | None = None
    found: list[Arrays] = []
    for checkpoint in track(checkpoints, "checkpoints"):
        kept = None if dataset is None else _load(checkpoint, dataset, opening)
        if kept is None:
            model = load_model(checkpoint.folder, device=opening.device, dtype=opening.dtype)
            here = shape(model.cfg)
            first = first or here
            if here != first:
                raise CheckpointError(f"'{checkpoint.folder}' is {told(here)}; the first is {first}")
            dataset = data(model) if dataset is None else dataset
            kept = _load(checkpoint, dataset, opening) or measure(model, dataset)
            _save(checkpoint, dataset, opening, kept)
            del model  # before the next one is opened beside it
        found.append(kept)
    return found, Ref(checkpoints[-1].model_name, folder_hash(checkpoints[-1].folder))


def forget(opening: Opening) -> None:
    """Delete what was kept, once the whole is saved."""
    if opening.state is not None and opening.state.is_dir():
        for path in opening.state.glob("*.state"):
            path.unlink()
        if not any(opening.state.iterdir()):
            opening.state.rmdir()


def _file(checkpoint: Checkpoint, opening: Opening) -> Path | None:
    return None if opening.state is None else opening.state / f"{checkpoint.step}.state"


def _key(checkpoint: Checkpoint, data: Data, opening: Opening) -> str:
    return f"{opening.settings}/{data.hash}/{folder_hash(checkpoint.folder)}/{opening.dtype}"


def _load(checkpoint: Checkpoint, data: Data, opening: Opening) -> Arrays | None:
    path = _file(checkpoint, opening)
    state = None if path is None else load_state(path, _key(checkpoint, data, opening), "a measured checkpoint")
    return None if state is None else {name: tensor.numpy() for name, tensor in state[0].items()}


def _save(checkpoint: Checkpoint, data: Data, opening: Opening, arrays: Arrays) -> None:
    path = _file(checkpoint, opening)
    if path is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
        save_state(path, _key(checkpoint, data, opening), tensors, {}, f"of step {checkpoint.step}")
