"""How `attlas.analyses.redundancy` scores."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import require_counts


@dataclass(frozen=True)
class RedundancyConfig:
    """How to score redundancy.

    Attributes:
        batch_size: sequences or images at a time.
        seed: of the bootstrap.
        n_bootstrap: resamples of each interval.
    """

    batch_size: int = 16
    seed: int = 0
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        require_counts(self, "batch_size")
