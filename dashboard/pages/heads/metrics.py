"""Scores of heads: names and meanings, and the rows that the entropy and anatomy runs of a model give together."""

from __future__ import annotations

from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.data.workspace import Run

# column → (name, unit, what it means); of head_entropy first, then of map_anatomy.
METRICS = {
    "entropy": ("Entropy", "nats", "Mean entropy of a query's attention; low heads attend to few tokens."),
    "normalized": ("Normalised entropy", "of log n", "Entropy over the logarithm of how many keys a query may see."),
    "lower_bound": ("Lower bound", "nats", "The least entropy that this spread of logits allows."),
    "max_weight": ("Largest weight", "fraction", "Mean of the largest attention weight of a query."),
    "sink_mass": ("Sink mass", "fraction", "Attention on the first token."),
    "previous_token": ("Previous token", "fraction", "Attention on the token just before."),
    "diagonal": ("Diagonal", "fraction", "Attention of a token on itself."),
    "local_mass": ("Local mass", "fraction", "Attention inside the local window."),
    "induction": ("Induction", "fraction", "Attention on the token after an earlier occurrence of this one."),
    "mean_distance": ("Mean distance", "tokens", "How far back a query attends."),
    "label_score": ("Label", "score of the label", "What a head mostly does; the colour is that label's score."),
    "duplicate_token": ("Duplicate token", "fraction", "Attention on earlier copies of the query's token."),
    "repeat_induction": (
        "Induction, random tokens",
        "fraction",
        "Attention on the token after the earlier copy, on random tokens repeated once.",
    ),
    "repeat_duplicate_token": (
        "Duplicate, random tokens",
        "fraction",
        "Attention on the earlier copy, on random tokens repeated once.",
    ),
    "repeat_previous_token": (
        "Previous token, random tokens",
        "fraction",
        "Attention on the token just before, on random tokens repeated once.",
    ),
    "local": ("Local, without sink and self", "fraction", "Attention on close tokens other than the first and itself."),
    "column_peak": (
        "Column mass",
        "fraction",
        "Largest mean weight that a key position after the first gets from the queries that see it.",
    ),
    # of table heads
    "self_attention_score": ("Self attention", "fraction", "Mean weight on the query itself (HeadVis)."),
    "prev_token_score": ("Previous token, corpus", "fraction", "Mean weight on the position before (HeadVis)."),
    "pattern_entropy": ("Pattern entropy", "nats", "Mean entropy of a query's attention (HeadVis)."),
    "qk_distance": ("Distance", "positions", "Mean distance under the attention mass (HeadVis)."),
    "qk_distance_variance": ("Variance of distance", "positions²", "Its variance (HeadVis)."),
    "induction_score": (
        "Induction, corpus",
        "fraction",
        "Weight after earlier copies of the query's token, where there are any (HeadVis).",
    ),
    "max_logit": ("Largest score", "logit", "Largest score before the softmax, as scaled."),
    "active": (
        "Active queries",
        "fraction",
        "Queries that give most of their mass to neither the sink nor themselves.",
    ),
    "output_ratio": ("Output", "of the stream's norm", "Mean of ‖z·W_O‖ over the norm of the residual stream."),
    "mean_activation": (
        "Activation",
        "fraction",
        "Mean over sequences of the largest weight off the first position.",
    ),
    "mean_norm": ("Largest output", "", "Mean over sequences of the largest ‖z·W_O‖ behind the first position."),
    "ov_rank": ("Rank of OV", "", "Effective rank of W_V·W_O."),
    "qk_rank": ("Rank of QK", "", "Effective rank of W_Q·W_Kᵀ."),
    "ov_norm": ("Norm of OV", "", "Frobenius norm of W_V·W_O."),
    "qk_norm": ("Norm of QK", "", "Frobenius norm of W_Q·W_Kᵀ, as scores are scaled."),
    "copying": ("Copying", "−1 … 1", "1 where each token raises its own logit, by the weights."),
    "matching": ("Matching", "−1 … 1", "1 where each token attends to its own kind, by the weights."),
    "direct_logit": ("Direct logit", "logits", "What it adds to the logit of the true next token, by itself."),
    "direct_logit_size": ("Direct logit, size", "logits", "Mean size of that."),
    "raised": ("Predictions raised", "fraction", "Share of predictions whose true token it raises, by itself."),
    "pattern_cluster": ("Cluster", "", "Cluster of heads of like patterns, the largest is 0."),
    "unexplained": ("Unexplained", "fraction", "Attention mass that no rule of the account takes."),
}
_MASS = {
    "window": ("Mass within {} tokens", "fraction", "Attention on the last {} tokens, the query's own among them."),
    "top_k": ("Mass of the top {}", "fraction", "Attention on the {} keys that a query attends to most."),
}
# Rows of map_columns that few queries see say little.
_SEEN = "CASE WHEN per_query > 0 THEN mass / per_query END >= 8"


def named(metric: str) -> tuple[str, str, str]:
    """Name, unit and meaning of a metric."""
    if metric in METRICS:
        return METRICS[metric]
    kind, _, at = metric.rpartition("_")
    name, unit, meaning = _MASS[kind]
    return name.format(at), unit, meaning.format(at)


def head_rows(reader: WorkspaceReader, entropy: Run | None, anatomy: Run | None) -> tuple[list[Row], list[str]]:
    """One row a head with every score the two runs have, and the names of those scores."""
    heads: dict[tuple[int, int], Row] = {}
    for run, table in ((anatomy, "map_anatomy"), (entropy, "head_entropy")):
        for row in reader.rows(run, table, ("layer", "head")):
            heads.setdefault((row["layer"], row["head"]), {}).update(row)
    masses = [row for row in reader.rows(anatomy, "map_mass", ("kind", "at")) if row["kind"] in _MASS]
    for row in masses:
        heads[row["layer"], row["head"]][f"{row['kind']}_{row['at']}"] = row["mass"]
    for row in _peaks(reader, anatomy):
        heads[row["layer"], row["head"]]["column_peak"] = row["peak"]
    rows = [heads[place] for place in sorted(heads)]
    names = [*METRICS, *dict.fromkeys(f"{row['kind']}_{row['at']}" for row in masses)]
    return rows, [name for name in names if any(row.get(name) is not None for row in rows)]


def _peaks(reader: WorkspaceReader, anatomy: Run | None) -> list[Row]:
    path = reader.table_file(anatomy, "map_columns")
    if path is None:
        return []
    return reader.query(
        f"SELECT layer, head, max(per_query) AS peak FROM read_parquet(?) WHERE position > 0 AND {_SEEN} GROUP BY 1, 2",
        [str(path)],
    )
