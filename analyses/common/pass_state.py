"""Where a long pass over the data stood, in one safetensors file, so that it goes on exactly from there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from attlas.data.files import atomic_path
from attlas.errors import ConfigError, StorageError


def save_state(path: Path, key: str, tensors: dict[str, Tensor], values: Mapping[str, Any], told: str) -> None:
    """Write a state, atomically; on a full disk the earlier one is kept, with a warning.

    Args:
        key: what the pass depends on (model, data, settings); `load_state` refuses another.
        values: numbers and names beside the tensors, as JSON takes them.
        told: where the pass stands, for the warning: "after batch 8".
    """
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"state": json.dumps({"key": key, **values})})
    except StorageError as error:
        warnings.warn(f"no state {told}: {error}; the pass goes on", stacklevel=3)


def load_state(path: Path, key: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, values) of a saved state; None when there is no file.

    Args:
        what: the pass, such as "a features pass".

    Raises:
        ConfigError: the file is of another model, data set or setting, or is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            values: dict[str, Any] = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ConfigError(f"'{path}' is no state of {what} ({error}); delete it or give another") from None
    if values["key"] != key:
        raise ConfigError(
            f"'{path}' is the state of another pass ({values['key']}), this one is {key}; delete it or give another"
        )
    return tensors, values
