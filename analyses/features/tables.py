"""Schemas of a features run."""

from __future__ import annotations

import pyarrow as pa

from attlas.analyses.common.columns import (
    CONTEXT_START,
    DENSITY,
    FEATURE,
    HEAD,
    N_ACTIVE,
    OTHER_FEATURE,
    PROMOTED,
    RANK_BY_SHARE,
    RANK_BY_STRENGTH,
    SEQUENCE,
    TEXT_TOKENS,
    TOKENS_SHOWN,
    TOP_TOKENS,
)
from attlas.analyses.features.directions import LOCAL_WINDOW, LONG_DISTANCE
from attlas.data.schema import TableSchema, column

_F = pa.float64()


def _family(name: str, what: str) -> tuple[pa.Field, ...]:
    """Score, null, excess, p and q of a family."""
    return (
        column(name, _F, "fraction", what),
        column(f"{name}_null", _F, "fraction", "mean of that over directions of the same head norms and density"),
        column(f"{name}_excess", _F, "fraction", "score less null"),
        column(f"{name}_p", _F, "probability", "of a null as high, one-sided"),
        column(f"{name}_q", _F, "probability", "that p after Benjamini and Hochberg, over features"),
    )


def _beyond(name: str, unit: str, what: str) -> tuple[pa.Field, ...]:
    """A number, its null's 95th percentile, p and q."""
    return (
        column(name, _F, unit, what),
        column(
            f"{name}_null",
            _F,
            unit,
            "95th percentile of that of directions of the same head norms (phrase: and density)",
        ),
        column(f"{name}_p", _F, "probability", "of a null as high, one-sided; null of dead features"),
        column(f"{name}_q", _F, "probability", "that p after Benjamini and Hochberg, over features"),
    )


FEATURES = TableSchema(
    "features",
    "one feature, dead ones too",
    (
        FEATURE,
        DENSITY,
        N_ACTIVE,
        column("mean_act", pa.float64(), "activation", "mean activation where active"),
        column("max_act", pa.float64(), "activation", "largest activation"),
        column("top_head", pa.int16(), "", "head with the largest share of the decoder row's norm; −1 without heads"),
        column("top_head_share", pa.float64(), "fraction", "that share"),
        column("head_spread", pa.float64(), "heads", "exp of the shares' entropy: how many heads write it"),
        PROMOTED,
        column("suppressed", pa.string(), "", "tokens or classes it suppresses most, joined by ' | '"),
        TOP_TOKENS,
        *_beyond("logit_z", "standard deviations", "largest logit effect, over the vocabulary, from the mean effect"),
        *_beyond("neighbour_cosine", "", "largest decoder cosine with another feature; null: random dictionaries"),
        column("family", pa.string(), "", "induction, local, long-range; unassigned where excess or check is wanting"),
        *_beyond("phrase", "fraction", "examples with their most common token: where it fires or the one after"),
        *_family("induction", "attribution on tokens after earlier copies of the current one"),
        *_family("local", f"attribution within the last {LOCAL_WINDOW} positions"),
        *_family("long_range", f"attribution {LONG_DISTANCE} or more positions back"),
        column("source_entropy", _F, "nats", "of the token at the sources, over its activation"),
        column("source_entropy_null", _F, "nats", "5th percentile of that of its null"),
        column(
            "fall",
            _F,
            "fraction",
            "activation lost with the earlier copies replaced, less that lost with as many other tokens replaced; null "
            "where not looked at",
        ),
        column("fall_low", _F, "fraction", "lower end of its 95 % interval (Student's t, paired over examples)"),
        column("fall_high", _F, "fraction", "upper end"),
        column(
            "kept_far",
            _F,
            "fraction",
            f"activation kept with all but the last {LOCAL_WINDOW} positions replaced; null where not looked at",
        ),
        column("kept_far_null", _F, "fraction", "median of that of random directions"),
        column("kept_near", _F, "fraction", f"activation kept with the {LOCAL_WINDOW - 1} positions before shuffled"),
        column("kept_near_null", _F, "fraction", "median of that of random directions"),
    ),
)
HEADS = TableSchema(
    "heads",
    "one feature and head",
    (
        FEATURE,
        HEAD,
        column("share", pa.float64(), "fraction", "‖W_dec[f, head]‖ / Σ over heads"),
    ),
)
_GATE = tuple(
    column(f"dfa_gate_{name}", kind, "pre-activation", f"{what} of the gate; null unless the autoencoder is gated")
    for name, kind, what in (
        ("sources", pa.list_(pa.float32()), "attribution by source, over the tokens shown,"),
        ("outside", pa.float32(), "attribution of sources before the tokens shown,"),
        ("heads", pa.list_(pa.float32()), "attribution by head"),
        ("constant", _F, "what biases add, with which the heads sum to the pre-activation"),
    )
)
EXAMPLES = TableSchema(
    "examples",
    "one example of a feature",
    (
        FEATURE,
        column("rank", pa.int16(), "", "place within the stratum, from 0"),
        column(
            "stratum", pa.string(), "", "top, or q75, q50, q25: the band of sampled activations above that quantile"
        ),
        column("activation", pa.float64(), "activation", "at the example's position"),
        SEQUENCE,
        column("position", pa.int32(), "", "token position in the sequence"),
        CONTEXT_START,
        TOKENS_SHOWN,
        column("activations", pa.list_(pa.float32()), "activation", "of this feature on the tokens or patches shown"),
        column("dfa_sources", pa.list_(pa.float32()), "pre-activation", "attribution by source, over the tokens shown"),
        column("dfa_outside", pa.float32(), "pre-activation", "attribution of sources before the tokens shown"),
        column("dfa_heads", pa.list_(pa.float32()), "pre-activation", "attribution by head"),
        column(
            "dfa_constant", _F, "pre-activation", "of the biases; with the sum of dfa_heads it is the pre-activation"
        ),
        *_GATE,
    ),
)
HISTOGRAM = TableSchema(
    "histogram",
    "one feature and bin with at least one activation",
    (
        FEATURE,
        column("bin_left", pa.float64(), "activation", "lower edge; bins are equal in log₂"),
        column("bin_right", pa.float64(), "activation", "upper edge"),
        column("count", pa.int64(), "tokens", "activations within"),
    ),
)
LOGITS = TableSchema(
    "logits",
    "one feature and one of the tokens or classes it moves most",
    (
        FEATURE,
        RANK_BY_STRENGTH,
        column("sign", pa.string(), "", "promoted or suppressed"),
        column("token", pa.string(), "", "token text or class name"),
        column(
            "effect", pa.float64(), "logits", "direct effect of one unit of activation, the final norm's scale left out"
        ),
    ),
)
TOKENS = TableSchema(
    "feature_tokens",
    "one feature and one of the tokens it is most active on",
    (
        FEATURE,
        RANK_BY_SHARE,
        column("token", pa.string(), "", "token text"),
        column("share", pa.float64(), "fraction", "share of the feature's summed activation"),
        column("n", pa.int64(), "tokens", "times active on this token"),
    ),
)
NEIGHBOURS = TableSchema(
    "neighbours",
    "one feature and one whose decoder row points alike",
    (
        FEATURE,
        RANK_BY_STRENGTH,
        OTHER_FEATURE,
        column("cosine", pa.float64(), "", "cosine of the two decoder rows"),
    ),
)
COACTIVATION = TableSchema(
    "coactivation",
    "one feature and one that fires on the same tokens, three of them at least",
    (
        FEATURE,
        RANK_BY_STRENGTH,
        OTHER_FEATURE,
        column("phi", pa.float64(), "", "correlation of being active (φ)"),
        column("jaccard", pa.float64(), "fraction", "tokens with both / tokens with either"),
        column("lift", pa.float64(), "", "tokens with both / tokens expected if they were independent"),
        column("n_both", pa.int64(), "tokens", "tokens with both"),
        column("n_tokens", pa.int64(), "tokens", "tokens counted, the first of the data"),
    ),
)
NGRAMS = TableSchema(
    "ngrams",
    "one feature and a phrase that two or more of its kept examples share",
    (
        FEATURE,
        RANK_BY_STRENGTH,
        column("place", pa.string(), "", "ends here: the phrase ends where it fires; comes next: the token after"),
        column("text", pa.string(), "", "the phrase"),
        column("n_tokens", pa.int16(), "tokens", "its length"),
        column("n_examples", pa.int32(), "examples", "kept examples that share it"),
        column("share", pa.float64(), "fraction", "of the feature's kept examples, all strata"),
    ),
)
EXAMPLE_WORDS = TableSchema(
    "example_words",
    "one word and one feature whose examples hold it, in order of words; empty for images",
    (
        column("word", pa.string(), "", "in small letters; runs of letters and digits, at most 40 characters"),
        FEATURE,
        column("n_showing", pa.int32(), "examples", "kept examples, all strata, that show it"),
    ),
)
FEATURE_TEXTS = TableSchema(
    "feature_texts",
    "one sequence that an example is from; none for images",
    (SEQUENCE, TEXT_TOKENS),
)
SCHEMAS = (
    FEATURES,
    HEADS,
    EXAMPLES,
    HISTOGRAM,
    LOGITS,
    TOKENS,
    NEIGHBOURS,
    COACTIVATION,
    NGRAMS,
    EXAMPLE_WORDS,
    FEATURE_TEXTS,
)
