"""Which drops `attlas.analyses.prune` measures."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError

ORDERS = ("ranked", "iterative", "random", "last", "reversed", "angular")


@dataclass(frozen=True)
class DropCurveConfig:
    """Which drops to measure.

    Attributes:
        targets: of attn, mlp, joint, block, head.
        counts: how many modules to drop, several.
        orders: of ranked (scores of the dense model), iterative (scored anew after each drop), random, last, reversed;
            of blocks alone angular (for each count the run of blocks that turns the stream least, Gromov et al. 2024).
        n_random: draws of the random control.
        head_score: what ranks heads: zero, mean or identity (exact ablations), or taylor (one gradient).
        batch_size: sequences or images at a time.
        seed: of the random draws.
    """

    targets: tuple[str, ...] = ("attn", "mlp", "joint", "block")
    counts: tuple[int, ...] = (1, 2, 3)
    orders: tuple[str, ...] = ("ranked", "random", "last", "reversed")
    n_random: int = 5
    head_score: str = "zero"
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for order in self.orders:
            if order not in ORDERS:
                raise ConfigError(f"order '{order}' is unknown; choose {', '.join(ORDERS)}")
        if "angular" in self.orders and set(self.targets) != {"block"}:
            raise ConfigError(
                f"order 'angular' is of runs of blocks, and targets are {', '.join(self.targets)}; take block"
            )
        if any(n < 1 for n in self.counts):
            raise ConfigError(f"counts {list(self.counts)} must be 1 or more")
