"""The state of a features pass: its stream and what fires together, to the tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.common.pass_state import load_state, save_state
from attlas.analyses.features.relations import Coactivation
from attlas.analyses.features.stream import FeatureStream, TopEntries

_SUMS = ("count", "total", "maximum", "histogram")
_KEPT = ("key", "value", "sequence", "position")


def save_pass(path: Path, key: str, n_batches: int, stream: FeatureStream, coactivation: Coactivation) -> None:
    """Write the state after `n_batches`, atomically; on a full disk the earlier state is kept, with a warning.

    Args:
        key: what the pass depends on (model, SAE, data, settings); `load_pass` refuses another.
    """
    tensors: dict[str, Tensor] = {name: getattr(stream, name) for name in _SUMS}
    for kept in ("top", "sample"):
        tensors |= {f"{kept}.{name}": getattr(getattr(stream, kept), name).contiguous() for name in _KEPT}
    tensors["generator"] = stream.generator.get_state()
    tensors |= {f"pairs.{name}": torch.from_numpy(v) for name, v in stream.pairs().items()}
    token, feature = coactivation.pairs()
    tensors |= {"coactive.token": torch.from_numpy(token), "coactive.feature": torch.from_numpy(feature)}
    values = {
        "n_batches": n_batches,
        "n_tokens": stream.n_tokens,
        "n_sequences": stream.n_sequences,
        "coactive": coactivation.seen,
    }
    save_state(path, key, tensors, values, f"after batch {n_batches}")


def load_pass(path: Path, key: str, stream: FeatureStream, coactivation: Coactivation) -> int:
    """Take up a saved state; returns the batches done, 0 when there is no file.

    Raises:
        ConfigError: the file is of another model, SAE, data set or setting, or is damaged.
    """
    state = load_state(path, key, "a features pass")
    if state is None:
        return 0
    tensors, values = state
    for name in _SUMS:
        setattr(stream, name, tensors[name])
    for kept in ("top", "sample"):
        setattr(stream, kept, TopEntries(*(tensors[f"{kept}.{name}"] for name in _KEPT)))
    stream.generator.set_state(tensors["generator"])
    stream.set_pairs({name: tensors[f"pairs.{name}"].numpy() for name in ("key", "sum", "n")})
    stream.n_tokens, stream.n_sequences = values["n_tokens"], values["n_sequences"]
    coactivation.set_pairs(
        np.asarray(tensors["coactive.token"]), np.asarray(tensors["coactive.feature"]), values["coactive"]
    )
    return int(values["n_batches"])
