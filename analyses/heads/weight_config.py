"""How `attlas heads weights` reads weights."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError


@dataclass(frozen=True)
class WeightsConfig:
    """How to read the weights of heads.

    Attributes:
        n_pairs: strongest token pairs kept of each head's QK and OV.
        n_vocab: tokens that pairs are sought among, the first so many ids (of BPE the most frequent); 0 for all of them.
        chunk: rows of the vocabulary at a time.
        n_random: pairs of random heads of the same shape that composition is compared with.
        seed: of these.
    """

    n_pairs: int = 10
    n_vocab: int = 8192
    chunk: int = 1024
    n_random: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_pairs, self.chunk) < 1 or self.n_random < 2 or self.n_vocab < 0:
            raise ConfigError(
                f"n_pairs {self.n_pairs} and chunk {self.chunk} must be 1 or more, n_random {self.n_random} 2 or more, "
                f"n_vocab {self.n_vocab} 0 or more"
            )
