"""Everything a training of a Lorsa depends on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from attlas.data.workspace import jsonable
from attlas.errors import ConfigError
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.rates import EXPONENT, MOST, REFERENCE_STEPS

RATE = 3e-3
"""Peak learning rate of 300 steps (docs/saes.md has how it was chosen); it falls with the cube root of the steps."""

NOT_TAKEN = (
    *(
        "hooks",
        "sparsity",
        "images",
        "normalise",
        "active_subspace",
        "subspace_variance",
        "sparsity_warmup",
        "bandwidth",
    ),
    *("widths", "buffer_tokens", "capture_batch", "store", "activation_dtype", "model_device", "fused", "lazy_adam"),
    *("precision", "cuda_graph"),
)
"""Fields of TrainConfig without a meaning here."""


@dataclass(frozen=True)
class LorsaTrainConfig:
    """What to train, on what, and how."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(arch="lorsa"))
    """Model, text, tokens, width, k, learning rate and the rest, as for autoencoders; batch_size is rounded down to whole
    sequences, at least one."""
    layer: int = 2
    """Layer of the model whose attention it stands for."""
    n_qk_heads: int | None = None
    """Query–key heads, among which the features are dealt out; None takes as many as the layer has."""
    d_qk_head: int | None = None
    """Width of queries and keys; None takes the layer's."""
    qk_start: Literal["layer", "random"] = "layer"
    """Start from the layer's own queries, keys and outputs, or at random."""

    def __post_init__(self) -> None:
        default = TrainConfig()
        odd = [name for name in NOT_TAKEN if getattr(self.train, name) != getattr(default, name)]
        if odd:
            raise ConfigError(f"{', '.join(odd)} cannot be given with arch=lorsa; leave them out (docs/saes.md)")
        if self.train.arch != "lorsa":
            object.__setattr__(self, "train", dataclasses.replace(self.train, arch="lorsa"))
        if self.qk_start not in ("layer", "random"):
            raise ConfigError(f"qk_start={self.qk_start!r:.40} is unknown; use layer or random")

    def learning_rate(self, n_steps: int) -> float:
        """The peak learning rate: as given, or the default's, slower in longer runs."""
        if self.train.lr is not None:
            return self.train.lr
        return RATE * min(MOST, (REFERENCE_STEPS / max(1, n_steps)) ** EXPONENT)

    def lr_factor(self, step: int, n_steps: int) -> float:
        """The learning rate at a step as a share of its peak: warm-up, plateau, linear fall (or cosine)."""
        stretched = dataclasses.replace(self.train, n_tokens=n_steps, batch_size=1, buffer_tokens=2)
        return stretched.lr_factor(step)

    def record(self) -> dict[str, Any]:
        """Plain JSON values of what was in force, for the manifest."""
        kept = {name: value for name, value in jsonable(self.train).items() if name not in NOT_TAKEN}
        return kept | {name: getattr(self, name) for name in ("layer", "n_qk_heads", "d_qk_head", "qk_start")}
