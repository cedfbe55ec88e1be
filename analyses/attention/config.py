"""How `attlas.analyses.attention` measures."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError, require_counts


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


@dataclass(frozen=True)
class AnatomyConfig:
    """How to dissect maps.

    Attributes:
        windows: widths of local windows, positions (the query's own among them); the first is the label's.
        top_k: numbers of largest weights to add up.
        batch_size: sequences or images at a time.
        skip_first: leading queries of each sequence to leave out (the first sees only itself in causal models).
        seed: of the repeated random tokens.
    """

    windows: tuple[int, ...] = (8, 16, 64)
    top_k: tuple[int, ...] = (1, 4, 16)
    batch_size: int = 16
    skip_first: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1 or min(self.top_k, default=1) < 1 or self.batch_size < 1:
            raise ConfigError(
                f"windows {self.windows} and top_k {self.top_k} must be positive, and batch_size {self.batch_size} too"
            )


@dataclass(frozen=True)
class TimelineConfig:
    """How to measure each checkpoint.

    Attributes:
        batch_size: sequences or images at a time.
        repeat_length: random tokens that are repeated once (cut to fit the context window).
        n_repeats: sequences of them.
        seed: of the random tokens and of the null's draws.
        n_draws: random turns of every head's queries, of the scores' null; 0: no null, and no births.
    """

    batch_size: int = 16
    repeat_length: int = 100
    n_repeats: int = 8
    seed: int = 0
    n_draws: int = 50

    def __post_init__(self) -> None:
        require_counts(self, "batch_size", "repeat_length", "n_repeats")
        if self.n_draws < 0:
            raise ConfigError(f"n_draws is {self.n_draws}; it must be 0 or more")


@dataclass(frozen=True)
class SelectionConfig:
    """How to measure coverage.

    Attributes:
        top_k: numbers of keys to keep.
        mass: part of a query's mass for the share of keys.
        batch_size: sequences or images at a time.
    """

    top_k: tuple[int, ...] = (16,)
    mass: float = 0.9
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not self.top_k or min(self.top_k) < 1 or self.batch_size < 1 or not 0 < self.mass <= 1:
            raise ConfigError(
                f"top_k {self.top_k} and batch_size {self.batch_size} must be positive, mass {self.mass} in (0, 1]"
            )


@dataclass(frozen=True)
class WindowConfig:
    """What to limit.

    Attributes:
        windows: widths, positions (the query's own among them); of images, hops + 1 (the command line takes 2 4 there).
        sinks: leading positions that stay visible; vision models use their prefix tokens instead.
        batch_size: sequences or images at a time.
        seed: of the bootstrap.
    """

    windows: tuple[int, ...] = (8, 32)
    sinks: int = 4
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1 or self.sinks < 0 or self.batch_size < 1:
            raise ConfigError(f"windows {self.windows} must be ≥ 1, sinks {self.sinks} ≥ 0, batch_size ≥ 1")


@dataclass(frozen=True)
class CostConfig:
    """What to time.

    Attributes:
        lengths: sequence lengths T (for vision models: tokens).
        batch_size: sequences at a time.
        repeats: timed passes of each; the median is reported. All sub-layers are run once a round, in turn.
        n_layers: time the first so many layers (all have the same shapes); 0 for all.
        seed: of the hidden states.
    """

    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    batch_size: int = 1
    repeats: int = 7
    n_layers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1 or self.batch_size < 1 or self.repeats < 1 or self.n_layers < 0:
            raise ConfigError(f"lengths {self.lengths}, batch_size and repeats must be ≥ 1, n_layers ≥ 0")
