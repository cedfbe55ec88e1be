"""How `attlas.analyses.attention` measures."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError


@dataclass(frozen=True)
class EntropyConfig:
    """How to measure attention entropy.

    Attributes:
        batch_size: sequences or images at a time.
        window: width of the local window, positions (the query's own among them).
        skip_first: leading queries of each sequence to leave out (the first sees only itself in causal models).
        seed: of the bootstrap.
    """

    batch_size: int = 16
    window: int = 8
    skip_first: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.window < 1 or self.skip_first < 0:
            raise ConfigError(
                f"batch_size {self.batch_size} and window {self.window} must be ≥ 1, skip_first {self.skip_first} ≥ 0"
            )
