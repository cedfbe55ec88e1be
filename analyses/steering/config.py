"""What `attlas.analyses.steering` changes, and how it generates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attlas.analyses.common.columns import Head
from attlas.errors import ConfigError, require_counts

MODES = ("add", "clamp", "ablate")
POSITIONS = ("all", "generated")


@dataclass(frozen=True)
class SteerConfig:
    """A change while generating.

    Attributes:
        features: of the autoencoder, all changed alike.
        heads: such as "3.0".
        mode: of features: add (raise the activation by the strength), clamp (set it to the strength), ablate (to 0); what the
            autoencoder does not reconstruct is kept. Of heads, whose z is scaled: add (by 1 + strength), ablate (by 0).
        strength: in units of the feature's activation; of heads a factor. 0 adds nothing.
        positions: all (but the first, where attention rests), or generated: from the prompt's last token on, whose output is
            the first generated token.
        n_new: tokens to generate, fewer where the text ends or the context window is full.
        temperature: of sampling; 0 takes the likeliest token.
        seed: of sampling (the same draws for every text) and of the random direction.
        n_rows: sequences of the corpus measured.
        batch_size: of those at a time.
    """

    features: tuple[int, ...] = ()
    heads: tuple[str, ...] = ()
    mode: str = "add"
    strength: float = 5.0
    positions: str = "all"
    n_new: int = 40
    temperature: float = 0.0
    seed: int = 0
    n_rows: int = 16
    batch_size: int = 8

    def __post_init__(self) -> None:
        require_counts(self, "n_new", "n_rows", "batch_size")
        for name, kinds in (("mode", MODES), ("positions", POSITIONS)):
            if getattr(self, name) not in kinds:
                raise ConfigError(f"{name} '{getattr(self, name)}' is not one of {', '.join(kinds)}")
        if not math.isfinite(self.strength):
            raise ConfigError(f"strength {self.strength} must be a finite number")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature {self.temperature} must be 0 or more")
        if not self.features and not self.heads:
            raise ConfigError("nothing is to be changed; name features or heads")
        if self.heads and self.mode == "clamp":
            raise ConfigError("a head has no activation to clamp; use add (its z is scaled by 1 + strength) or ablate")
        if self.mode == "clamp" and self.strength < 0:
            raise ConfigError(f"strength {self.strength}: a feature's activation is never below 0")
        self.parsed_heads()

    def parsed_heads(self) -> list[Head]:
        """(layer, head) of each."""
        found = []
        for name in self.heads:
            layer, _, head = name.partition(".")
            if not (layer.isdecimal() and head.isdecimal()):
                raise ConfigError(f"'{name}' is no head; write such as 3.0")
            found.append((int(layer), int(head)))
        return list(dict.fromkeys(found))
