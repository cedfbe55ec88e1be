"""Checkpoints of a Lorsa's training: the file and header of attlas.saes.training.checkpoint, with one Lorsa's state."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from attlas.data.files import atomic_path
from attlas.errors import CheckpointError, StorageError
from attlas.saes.lorsa.model import Lorsa
from attlas.saes.training.checkpoint import NAME, read_checkpoint, require_same


def save_state(
    folder: Path,
    step: int,
    lorsa: Lorsa,
    optimizer: torch.optim.Adam,
    silent_F: Tensor,
    config: dict[str, Any],
    rows: list[Any],
) -> None:
    """Write the whole state after `step` steps, atomically; a weight that is not finite, or no room, keeps the earlier one."""
    if not all(bool(torch.isfinite(p).all()) for p in lorsa.parameters()):
        return
    tensors = {f"lorsa/{name}": tensor for name, tensor in lorsa.state_dict().items()} | {"silent": silent_F}
    for name, parameter in lorsa.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam/{name}/{key}"] = value
    kept = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_path(folder / NAME) as temporary:
            save_file(kept, temporary, {"state": json.dumps({"step": step, "config": config, "rows": rows})})
    except StorageError as error:
        warnings.warn(f"no checkpoint of step {step}: {error}; training goes on", stacklevel=2)


def restore(
    folder: Path, lorsa: Lorsa, optimizer: torch.optim.Adam, silent_F: Tensor, config: dict[str, Any]
) -> tuple[int, list[Any]]:
    """Bring everything to the saved step; (0, []) where there is no checkpoint.

    Raises:
        ConfigError: the checkpoint is of another configuration, model or data; the first difference is named.
        CheckpointError: the file is damaged or incomplete.
    """
    found = read_checkpoint(folder)
    if found is None:
        return 0, []
    tensors, values = found
    require_same(folder, values["config"], json.loads(json.dumps(config)))
    try:
        lorsa.load_state_dict({name: tensors[f"lorsa/{name}"] for name in lorsa.state_dict()})
        silent_F.copy_(tensors["silent"])
        for name, parameter in lorsa.named_parameters():
            optimizer.state[parameter] = {
                key: tensors[f"adam/{name}/{key}"].to("cpu" if key == "step" else parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint in '{folder}' holds no Lorsa's state ({error}); start without resume"
        ) from error
    return int(values["step"]), list(values["rows"])
