"""How `attlas.analyses.features` interprets."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError, require_counts, require_shares


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
        require_counts(
            self,
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
        )
        if self.null_draws < 0:
            raise ConfigError(f"null_draws {self.null_draws} must be 0 (no families, no nulls) or more")


@dataclass(frozen=True)
class HeadSurveyConfig:
    """How heads are surveyed.

    Attributes:
        n_features: top features of each head.
        least_active: tokens on which a feature must be active to count.
        min_cosine: of the head's slices of two decoder rows, from which they belong together.
        min_phi: correlation of activity, from which they belong together.
        n_draws: random draws of features of the same autoencoder.
        n_dictionaries: random dictionaries, 20 or more.
        null_tokens: tokens, the first of the data, on which their features fire.
        batch_size: sequences at a time.
        skip_positions: leading positions left out; None as the SAE records it (else BOS of text, nothing of images).
        exclude_tokens: tokens whose positions are left out: bos, eos, pad, sep, token strings or ids; None as recorded.
        seed: of the control and the bootstrap.
    """

    n_features: int = 10
    least_active: int = 10
    min_cosine: float = 0.5
    min_phi: float = 0.3
    n_draws: int = 200
    n_dictionaries: int = 50
    null_tokens: int = 32_768
    batch_size: int = 16
    skip_positions: int | None = None
    exclude_tokens: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_counts(self, "n_features", "least_active", "n_draws", "null_tokens", "batch_size")
        if self.n_dictionaries < 20:
            raise ConfigError(f"n_dictionaries {self.n_dictionaries} must be 20 or more, for an interval over them")


@dataclass(frozen=True)
class MatchingConfig:
    """How two autoencoders are compared.

    Attributes:
        split_cosine: decoder cosine from which a feature of the second is a part of one of the first.
        same_cosine: decoder cosine from which a mutual match counts as the same feature.
        null_tokens: tokens, the first of the data, on which null dictionaries get the densities of the second.
        batch_size: sequences or images at a time.
        skip_positions: leading positions left out; None as the SAE records it (else BOS of text, nothing of images).
        exclude_tokens: tokens whose positions are left out: bos, eos, pad, sep, token strings or ids; None as recorded.
        seed: of the null dictionaries.
    """

    split_cosine: float = 0.4
    same_cosine: float = 0.7
    null_tokens: int = 32_768
    batch_size: int = 16
    skip_positions: int | None = None
    exclude_tokens: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_shares(self, "split_cosine", "same_cosine")
        require_counts(self, "null_tokens")
