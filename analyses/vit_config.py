"""What `attlas.analyses.vit` measures."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError


@dataclass(frozen=True)
class VitConfig:
    """What to measure on a vision model.

    Attributes:
        measure: "importance", "strength", or both.
        ablations: what a pruned head's output becomes: "zero", "mean", or both.
        batch_size: images at a time.
        seed: of the bootstrap and the probes' folds.
        n_bootstrap: resamples of each interval.
    """

    measure: tuple[str, ...] = ("importance", "strength")
    ablations: tuple[str, ...] = ("zero", "mean")
    batch_size: int = 32
    seed: int = 0
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        for name, known in (("measure", ("importance", "strength")), ("ablations", ("zero", "mean"))):
            odd = sorted(set(getattr(self, name)) - set(known))
            if odd or not getattr(self, name):
                raise ConfigError(f"{name} {odd} are not known; choose from {', '.join(known)}")
        for name in ("batch_size", "n_bootstrap"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be 1 or more")
