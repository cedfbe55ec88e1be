"""How `attlas.analyses.features` interprets."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError


@dataclass(frozen=True)
class FeaturesConfig:
    """How to interpret features.

    Attributes:
        batch_size: sequences or images at a time.
        n_top: strongest examples kept of each feature, one a sequence.
        n_sample: size of the uniform sample that the lower strata are drawn from.
        per_band: examples of each lower stratum.
        context: tokens shown before an example's position (a third as many after it).
        n_logits: promoted and suppressed tokens kept.
        n_related: neighbours and co-active features kept.
        coactivation_tokens: tokens, the first of the data, over which co-activation is counted.
        skip_positions: leading positions left out; None as the SAE records it (else BOS of text, nothing of images).
        exclude_tokens: tokens whose positions are left out: bos, eos, pad, sep, token strings or ids; None as recorded.
        null_draws: random directions that a feature's family scores, logit effects and neighbours are set against; 0
            leaves families and these nulls out.
        null_tokens: tokens, the first of the data, that family scores and their null are of.
        n_scored: strongest examples of a feature, one a sequence, that family scores are over.
        n_causal: strongest examples of a feature that causal checks change and run again.
        seed: of the sample, the null and the changes.
    """

    batch_size: int = 16
    n_top: int = 10
    n_sample: int = 32
    per_band: int = 3
    context: int = 30
    n_logits: int = 10
    n_related: int = 8
    coactivation_tokens: int = 32_768
    skip_positions: int | None = None
    exclude_tokens: tuple[str, ...] | None = None
    null_draws: int = 200
    null_tokens: int = 32_768
    n_scored: int = 32
    n_causal: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "n_top",
            "n_sample",
            "per_band",
            "context",
            "n_logits",
            "n_related",
            "coactivation_tokens",
            "null_tokens",
            "n_scored",
            "n_causal",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be 1 or more")
        if self.null_draws < 0:
            raise ConfigError(f"null_draws {self.null_draws} must be 0 (no families, no nulls) or more")
