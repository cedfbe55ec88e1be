"""Tables of a run of `head_weights`: what each head is by its weights, its strongest token pairs, and composition."""

from __future__ import annotations

import pyarrow as pa

from attlas.analyses.common.columns import HEAD, LAYER, RANK_BY_STRENGTH
from attlas.data.schema import TableSchema, column

_F = pa.float64()
HEAD_WEIGHTS = TableSchema(
    "head_weights",
    "one head",
    (
        LAYER,
        HEAD,
        column("ov_rank", _F, "", "effective rank of W_V·W_O: exp of the entropy of its singular values as shares"),
        column("qk_rank", _F, "", "effective rank of W_Q·W_Kᵀ (of rotary embeddings: at distance 0)"),
        column("ov_norm", _F, "", "Frobenius norm of W_V·W_O, the norm in front folded"),
        column("qk_norm", _F, "", "Frobenius norm of W_Q·W_Kᵀ, as scores are scaled"),
        column(
            "copying",
            _F,
            "−1 … 1",
            "Σ Re λ / Σ |λ| of W_E·W_V·W_O·W_U: 1 where each token raises its own logit; NaN without tokens",
        ),
        column(
            "matching",
            _F,
            "−1 … 1",
            "the same of W_E·W_Q·W_Kᵀ·W_Eᵀ: 1 where each token attends to its own kind; NaN without tokens",
        ),
        column("ov_singular", pa.list_(_F), "", "singular values of W_V·W_O, largest first"),
        column("qk_singular", pa.list_(_F), "", "singular values of W_Q·W_Kᵀ"),
    ),
)
HEAD_TOKEN_PAIRS = TableSchema(
    "head_token_pairs",
    "one head, one of its circuits and one pair of tokens",
    (
        LAYER,
        HEAD,
        column(
            "circuit", pa.string(), "", "qk: from a query's token to a key's; ov: from a token attended to, to a logit"
        ),
        RANK_BY_STRENGTH,
        column("from_token", pa.int32(), "", "token id"),
        column("to_token", pa.int32(), "", "token id"),
        column("from_text", pa.string(), "", "its text"),
        column("to_text", pa.string(), "", "its text"),
        column(
            "pair_value",
            _F,
            "logit",
            "of embeddings of root mean square 1: score (qk), or logit before the last norm's scale",
        ),
    ),
)
HEAD_COMPOSITION = TableSchema(
    "head_composition",
    "one head and one of an earlier layer",
    (
        LAYER,
        HEAD,
        column("from_layer", pa.int16(), "", "layer of the earlier head"),
        column("from_head", pa.int16(), "", "the earlier head"),
        column(
            "q_composition", _F, "fraction", "Q-composition ‖W_OV·W_QK‖ / (‖W_OV‖·‖W_QK‖), W_OV of the earlier head"
        ),
        column("k_composition", _F, "fraction", "K-composition, of W_QKᵀ"),
        column("v_composition", _F, "fraction", "V-composition, of the later head's W_OV"),
        column("random", _F, "fraction", "control: mean of the same for heads of random weights of this shape"),
    ),
)
SCHEMAS = (HEAD_WEIGHTS, HEAD_TOKEN_PAIRS, HEAD_COMPOSITION)
