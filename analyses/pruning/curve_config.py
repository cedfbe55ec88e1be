"""Which drops `attlas.analyses.pruning` measures."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError

BUDGETS = ("n", "max_delta_ce", "save_parameters", "save_kv", "save_time")
"""How much goes may be said by one of these."""
ORDERS = ("ranked", "iterative", "random", "last", "reversed", "angular")


@dataclass(frozen=True)
class DropCurveConfig:
    """Which drops to measure.

    Attributes:
        targets: of attn, mlp, joint, block, head.
        counts: how many modules to drop, several.
        orders: of ranked (scores of the dense model), iterative (scored anew after each drop), random, last, reversed;
            of blocks alone angular (for each count the run of blocks that turns the stream least, Gromov et al. 2024).
        n_random: distinct sets that the random control draws at each count, none of them the ranking's; all there are,
            where these are fewer.
        random_share: share of the sequences or images that random draws are measured on, from the first on (at least 8);
            every other order is compared with them on the same ones.
        head_score: what ranks heads: zero, mean or identity (exact ablations), or taylor (one gradient).
        batch_size: sequences or images at a time.
        seed: of the random draws.
    """

    targets: tuple[str, ...] = ("attn", "mlp", "joint", "block")
    counts: tuple[int, ...] = (1, 2, 3)
    orders: tuple[str, ...] = ("ranked", "random", "last", "reversed")
    n_random: int = 20
    random_share: float = 0.5
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
        if self.n_random < 1 or not 0 < self.random_share <= 1:
            raise ConfigError(
                f"n_random {self.n_random} must be 1 or more, and random_share {self.random_share} above 0 and at most 1"
            )
