"""What every format does: read JSON and safetensors with a refusal in one line, and put checked weights into an SAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attlas.errors import ConfigError, SAEFormatError
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or SAEFormatError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SAEFormatError(f"'{path}' does not exist; an SAE folder needs it") from None
    except OSError as error:
        raise SAEFormatError(f"'{path}' cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise SAEFormatError(f"'{path}' is not JSON ({error}); copy or train the SAE again") from error
    if not isinstance(record, dict):
        raise SAEFormatError(f"'{path}' holds a {type(record).__name__}, not an object; it is no SAE configuration")
    return record


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or SAEFormatError."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise SAEFormatError(f"'{path}' does not exist; an SAE folder needs it") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise SAEFormatError(f"'{path}' is damaged ({error}); copy or train the SAE again") from error


def build(cfg: SAEConfig, state: dict[str, Tensor], source: Path) -> SAE:
    """An SAE of `cfg` with the weights `state`, under SAELens's names or ours.

    Sizes are compared before anything of the configuration's size is allocated.

    Raises:
        SAEFormatError: weights are missing, unknown, of another shape, or not finite.
    """
    try:
        with torch.device("meta"):
            sae = create_sae(cfg)
    except ConfigError as error:
        raise SAEFormatError(f"'{source}': {error}") from error
    ours = {theirs: name for name, theirs in sae.saelens_names.items()}
    state = {ours.get(name, name): tensor for name, tensor in state.items()}
    needed = sae.state_dict()
    missing, unknown = sorted(needed.keys() - state.keys()), sorted(state.keys() - needed.keys())
    if missing or unknown:
        detail = [f"lacks {', '.join(missing)}"] if missing else []
        detail += [f"has {', '.join(unknown)}, which a {cfg.arch} SAE does not"] if unknown else []
        raise SAEFormatError(f"'{source}' {' and '.join(detail)}; it is incomplete or of another architecture")
    for name, tensor in needed.items():
        if state[name].shape != tensor.shape:
            raise SAEFormatError(
                f"'{source}': {name} has shape {list(state[name].shape)} and the configuration says "
                f"{list(tensor.shape)}; the two files do not belong together"
            )
        n_bad = int((~torch.isfinite(state[name])).sum())
        if n_bad:
            raise SAEFormatError(
                f"'{source}': {name} holds NaN or infinity in {n_bad} of {state[name].numel()} places; "
                "copy or train the SAE again"
            )
    weights = {name: state[name].to(tensor.dtype).contiguous() for name, tensor in needed.items()}
    sae.load_state_dict(weights, assign=True)
    return sae
