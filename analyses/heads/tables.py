"""Tables of a run of `heads`: scores and account of each head, the sequences that show it, and their tokens."""

from __future__ import annotations

import pyarrow as pa

from attlas.analyses.common.columns import (
    HEAD,
    LAYER,
    MAX_WEIGHT,
    N_QUERIES,
    RANK_BY_STRENGTH,
    REPEAT_INDUCTION,
    SEQUENCE,
    SINK_MASS,
    TEXT_TOKENS,
    interval,
)
from attlas.analyses.heads.rules import IMAGE_RULES, REST, TEXT_RULES
from attlas.data.schema import TableSchema, column

_F = pa.float64()
# HeadVis's six by its own definitions (over all queries), then ours (over queries behind the first position).
SCORES = (
    column("self_attention_score", _F, "fraction", "mean weight on the query itself (HeadVis)"),
    column("prev_token_score", _F, "fraction", "mean weight on the position before (HeadVis)"),
    column("pattern_entropy", _F, "nats", "mean over queries of −Σ a·log a (HeadVis)"),
    column("qk_distance", _F, "positions", "mean distance under the attention mass (HeadVis)"),
    column("qk_distance_variance", _F, "positions²", "its variance under the attention mass (HeadVis)"),
    column(
        "induction_score",
        _F,
        "fraction",
        "weight after earlier copies of the query's token, weights below 0.01 left out; mean over queries whose token "
        "occurred before (HeadVis)",
    ),
    REPEAT_INDUCTION,
    SINK_MASS,
    MAX_WEIGHT,
    column("max_logit", _F, "logit", "largest score before the softmax, as scaled"),
    column("active", _F, "fraction", "share of queries whose mass off the sink and themselves passes the threshold"),
    column("output_ratio", _F, "fraction", "mean of ‖z·W_O‖ over the norm of the residual stream it is read from"),
    column("mean_activation", _F, "fraction", "mean over sequences of the largest weight off the first position"),
    column("mean_norm", _F, "", "mean over sequences of the largest ‖z·W_O‖ behind the first position"),
    column("unexplained", _F, "fraction", "mass that no rule of the account takes"),
)
HEADS = TableSchema("heads", "one head", (LAYER, HEAD, *SCORES, N_QUERIES))
HEAD_INTERVALS = TableSchema(
    "head_intervals",
    "one head and one of its scores",
    (
        LAYER,
        HEAD,
        column("of", pa.string(), "", "the score, a column of table heads"),
        column("value", _F, "", "as there"),
        *interval("", "sequences or images"),
    ),
)
HEAD_ACCOUNT = TableSchema(
    "head_account",
    "one head and one rule",
    (
        LAYER,
        HEAD,
        column(
            "rule",
            pa.string(),
            "",
            "in order, of text: " + ", ".join(TEXT_RULES) + "; of images: " + ", ".join(IMAGE_RULES),
        ),
        column(
            "share",
            _F,
            "fraction",
            "attention mass of pairs that this rule is the first to take, queries behind the first",
        ),
        *interval("fraction", "sequences or images"),
        column(
            "share_repeats",
            _F,
            "fraction",
            "the same over the queries whose token occurred before; empty for images, and where there are none",
        ),
        column(
            "share_repeated",
            _F,
            "fraction",
            "positive control: share_repeats on random tokens said twice; empty without them",
        ),
        column(
            "share_shuffled", _F, "fraction", "control: the same on shuffled text or patches; empty without controls"
        ),
        column(
            "share_random", _F, "fraction", "control: the same of a model with random weights; empty without controls"
        ),
    ),
)
HEAD_SEQUENCES = TableSchema(
    "head_sequences",
    "one head and one sequence that shows it",
    (
        LAYER,
        HEAD,
        column(
            "by",
            pa.string(),
            "",
            f"what ranks sequences: weight (largest off the first position), norm (‖z·W_O‖), {REST}",
        ),
        column("interval", pa.int16(), "", "part of all sequences by that, from 0, the lowest"),
        RANK_BY_STRENGTH,
        SEQUENCE,
        column("strength", _F, "", "of the sequence: weight or share in 0 … 1, or a norm"),
        column("query", pa.list_(pa.int32()), "positions", "query of each kept weight"),
        column("key", pa.list_(pa.int32()), "positions", "its key"),
        column(
            "weight",
            pa.list_(pa.float32()),
            "fraction",
            "the weight; the strongest keys of each query, small ones left out",
        ),
    ),
)
HEAD_TEXTS = TableSchema(
    "head_texts",
    "one sequence that shows a head",
    (SEQUENCE, TEXT_TOKENS),
)
N_PARTS = 50  # of 0 … 1, as in HeadVis's tree
HEAD_HISTOGRAMS = TableSchema(
    "head_histograms",
    "one head",
    (
        LAYER,
        HEAD,
        column(
            "n_by_activation",
            pa.list_(pa.int64()),
            "sequences",
            f"how many have their largest weight off the first position in each of {N_PARTS} equal parts of 0 … 1",
        ),
    ),
)
SCHEMAS = (HEADS, HEAD_INTERVALS, HEAD_ACCOUNT, HEAD_SEQUENCES, HEAD_TEXTS, HEAD_HISTOGRAMS)
