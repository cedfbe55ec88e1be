"""Columns that tables of several analyses share: same name, type, unit and meaning. Each is declared here, once."""

from __future__ import annotations

from functools import cache

import pyarrow as pa

from attlas.data.schema import column

MODULES = ("attn", "mlp", "block")
Head = tuple[int, int]
"""(layer, head), both from 0."""

# -- where -----------------------------------------------------------------------------------------------------------------

LAYER = column("layer", pa.int16(), "", "layer index, from 0")
HEAD = column("head", pa.int16(), "", "head index, from 0")
TARGET = column("target", pa.string(), "", "attn, mlp, joint (attn and mlp ranked together), block, head, or group")
MODULE = column("module", pa.string(), "", "attn, mlp, or block (both)")
CHECKPOINT = column("checkpoint", pa.string(), "", "its folder")
CHECKPOINT_STEP = column("step", pa.int64(), "steps", "training step of the checkpoint")
STEP = column("step", pa.int64(), "steps", "training step, from 0")

# -- how much was measured -------------------------------------------------------------------------------------------------

N_IMAGES = column("n_images", pa.int32(), "images", "images measured")
N_QUERIES = column("n_queries", pa.int64(), "queries", "queries measured")
N_PROMPTS = column("n_prompts", pa.int32(), "prompts", "prompts measured")
N_SEQUENCES = column("n_sequences", pa.int64(), "", "sequences or images measured")
N_TOKENS = column("n_tokens", pa.int64(), "tokens", "tokens or patches measured")

# -- attention of a head ---------------------------------------------------------------------------------------------------

ENTROPY = column("entropy", pa.float64(), "nats", "mean over queries of −Σ a·log a")
NORMALIZED = column(
    "normalized", pa.float64(), "fraction", "mean of entropy / log(attendable positions); rows with one left out"
)
LOWER_BOUND = column(
    "lower_bound", pa.float64(), "nats", "mean over queries of Theorem 3.1's bound with s = ‖u − mean(u)‖"
)
MAX_WEIGHT = column("max_weight", pa.float64(), "fraction", "mean of a query's largest weight")
SINK_MASS = column("sink_mass", pa.float64(), "fraction", "mean weight on the first position")
PREVIOUS_TOKEN = column("previous_token", pa.float64(), "fraction", "mean weight on the position before the query")
DIAGONAL = column("diagonal", pa.float64(), "fraction", "mean weight on the query itself")
REPEAT_INDUCTION = column("repeat_induction", pa.float64(), "fraction", "induction score on repeated random tokens")
MEAN_DISTANCE = column("mean_distance", pa.float64(), "positions", "mean distance from the query to where it looks")

# -- redundancy ------------------------------------------------------------------------------------------------------------

REDUNDANCY = column("score", pa.float64(), "1 − cosine", "1 − mean cos(x, x + module(norm(x))); near 0 is redundant")

# -- features --------------------------------------------------------------------------------------------------------------

FEATURE = column("feature", pa.int32(), "", "feature index, the row of W_dec")
DENSITY = column("density", pa.float64(), "fraction", "share of tokens on which it is active")
N_ACTIVE = column("n_active", pa.int64(), "tokens", "tokens on which it is active")
PROMOTED = column("promoted", pa.string(), "", "tokens or classes it promotes most, joined by ' | '")
TOP_TOKENS = column("top_tokens", pa.string(), "", "tokens with the largest shares of its activation, joined by ' | '")
OTHER_FEATURE = column("other", pa.int32(), "", "the other feature")
RANK_BY_STRENGTH = column("rank", pa.int16(), "", "from 0, the strongest first")
RANK_BY_SHARE = column("rank", pa.int16(), "", "from 0, the largest share first")
SEQUENCE = column("sequence", pa.int32(), "", "sequence or image index in the data set")
CONTEXT_START = column("context_start", pa.int32(), "", "position of the first token shown")
TEXT_TOKENS = column("tokens", pa.list_(pa.string()), "", "text of its tokens; empty for images")
TOKENS_SHOWN = column("tokens", pa.list_(pa.string()), "", "text of the tokens shown; empty for images")


@cache
def interval(unit: str, over: str = "images") -> tuple[pa.Field, pa.Field]:
    """Columns low and high of a bootstrap interval."""
    return (
        column("low", pa.float64(), unit, f"95 % bootstrap interval over {over}, lower end"),
        column("high", pa.float64(), unit, f"95 % bootstrap interval over {over}, upper end"),
    )


@cache
def upper(unit: str) -> pa.Field:
    """The column high, behind a column low that says which interval it is."""
    return column("high", pa.float64(), unit, "its upper end")
