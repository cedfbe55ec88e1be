"""What `attlas.analyses.vit` measures."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError

ABLATIONS = ("mean_per_position", "zero", "mean", "resample")


@dataclass(frozen=True)
class VitConfig:
    """What to measure on a vision model.

    Attributes:
        measure: "importance", "strength", or both.
        ablations: what a pruned head's z becomes, several, the first is the one that ranks: mean_per_position (its mean
            over images at each position), zero, mean (over positions too: CLS and patches alike), resample (that of
            another image).
        batch_size: images at a time.
        resample_draws: other images that stand in for each, for resample; the effect is their mean.
        seed: of the bootstrap, the probes' folds and those draws.
        n_bootstrap: resamples of each interval.
    """

    measure: tuple[str, ...] = ("importance", "strength")
    ablations: tuple[str, ...] = ("mean_per_position", "zero")
    batch_size: int = 32
    resample_draws: int = 4
    seed: int = 0
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        for name, known in (("measure", ("importance", "strength")), ("ablations", ABLATIONS)):
            odd = sorted(set(getattr(self, name)) - set(known))
            if odd or not getattr(self, name):
                raise ConfigError(f"{name} {odd} are not known; choose from {', '.join(known)}")
        for name in ("batch_size", "resample_draws", "n_bootstrap"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be 1 or more")
