"""How `attlas.saes.evaluation.measure` evaluates."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError

CONTROLS = ("pca", "random_dictionary", "shuffled_weights")


@dataclass(frozen=True)
class EvalConfig:
    """How to evaluate."""

    controls: tuple[str, ...] = CONTROLS
    """What to compare with: pca, random_dictionary, shuffled_weights; none for the SAE alone."""
    functional: bool = True
    """Run the model with reconstructions spliced in (cross-entropy, KL); False measures reconstruction only."""
    eval_batch: int = 8
    """Sequences in a forward pass; fewer where the vocabulary is large."""
    n_bootstrap: int = 1000
    """Resamplings of sequences behind each bootstrap-t interval; 0 for no intervals, none below 8 sequences."""
    confidence: float = 0.95
    """Coverage of an interval."""
    skip_positions: int | None = None
    """Leading positions left out; None as the SAE records it (else the BOS of text and nothing of images)."""
    exclude_tokens: tuple[str, ...] | None = None
    """Tokens whose positions are left out: bos, eos, pad, sep, token strings or ids; None as the SAE records it."""
    eval_seed: int = 0
    """Seed of the bootstrap and of the random controls."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.controls if name not in CONTROLS]
        if unknown:
            raise ConfigError(f"control '{unknown[0]}' is unknown; use {', '.join(CONTROLS)}")
        if self.eval_batch < 1 or self.n_bootstrap < 0 or not 0 < self.confidence < 1:
            raise ConfigError(
                f"eval_batch={self.eval_batch} must be at least 1, n_bootstrap={self.n_bootstrap} at least 0, "
                f"and confidence={self.confidence} between 0 and 1"
            )
