"""The tables of an evaluation, and what every metric is divided by."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from attlas.data.schema import TableSchema, column


@dataclass(frozen=True)
class Metric:
    """A metric's unit and its definition, denominator included."""

    unit: str
    definition: str


METRICS: dict[str, Metric] = {
    "l0": Metric("features", "active features, mean over tokens"),
    "explained_variance": Metric("fraction", "1 − Σ‖x−x̂‖² / Σ‖x−x̄‖², sums over all tokens, x̄ their mean"),
    "explained_variance_token": Metric(
        "fraction", "1 − ‖x−x̂‖² / ‖x−x̄‖² of each token, mean over tokens (SAELens's explained_variance_legacy)"
    ),
    "squared_error": Metric("", "Σ_D (x−x̂)², mean over tokens"),
    "cosine": Metric("", "cosine of x and x̂, mean over tokens"),
    "shrinkage_slope": Metric("", "regression slope Σ(x̂−x̄)·(x−x̄) / Σ‖x−x̄‖²; 1 is no shrinkage"),
    "dead_fraction": Metric("fraction", "features active on none of the n_tokens tokens, of d_sae"),
    "ce_clean": Metric("nats", "cross-entropy of the untouched model, mean over predicted tokens (or labelled images)"),
    "ce_spliced": Metric("nats", "the same with x̂ in place of x at the hook"),
    "ce_zero": Metric("nats", "the same with 0 in place of x"),
    "ce_mean": Metric("nats", "the same with x̄ in place of x"),
    "ce_increase": Metric("nats", "ce_spliced − ce_clean"),
    "ce_recovered": Metric("fraction", "(ce_zero − ce_spliced) / (ce_zero − ce_clean)"),
    "ce_recovered_mean": Metric("fraction", "(ce_mean − ce_spliced) / (ce_mean − ce_clean)"),
    "kl": Metric("nats", "KL(clean ‖ spliced) of output distributions, mean over positions (or images)"),
    "kl_zero": Metric("nats", "KL(clean ‖ zero-ablated), likewise"),
    "accuracy_clean": Metric("fraction", "labelled images classified rightly by the untouched model"),
    "accuracy_spliced": Metric("fraction", "the same with x̂ in place of x"),
    "accuracy_zero": Metric("fraction", "the same with 0 in place of x"),
    "output_cosine": Metric("", "cosine of the final CLS states, clean and spliced, mean over images"),
    "output_cosine_zero": Metric("", "the same, clean and zero-ablated"),
    "output_cosine_mean": Metric("", "the same, clean and mean-ablated"),
}

EVALUATION = TableSchema(
    "evaluation",
    "one metric of the SAE or of a control",
    (
        column(
            "subject",
            pa.string(),
            "",
            "sae, pca, random_dictionary or shuffled_weights; of a layer (lorsa_eval) the name given",
        ),
        column("metric", pa.string(), "", "name of the metric"),
        column("value", pa.float64(), "see unit", "over all sequences"),
        column("low", pa.float64(), "see unit", "lower end of the interval over sequences; null below 8"),
        column("high", pa.float64(), "see unit", "its upper end"),
        column("unit", pa.string(), "", "unit of value, low and high"),
        column("description", pa.string(), "", "definition, with what is divided by what"),
        column("note", pa.string(), "", "what the subject is"),
        column("n_sequences", pa.int64(), "sequences", "sequences (or images) evaluated"),
        column("n_tokens", pa.int64(), "tokens", "activations evaluated"),
    ),
)

DENSITY = TableSchema(
    "density",
    "one bin of the activation-density histogram",
    (
        column("bin_left", pa.float64(), "log10 fraction", "lower edge of log10(share of tokens it is active on)"),
        column("bin_right", pa.float64(), "log10 fraction", "upper edge; null for the bin of dead features"),
        column("count", pa.int64(), "features", "features in the bin; the bin with null edges holds dead ones"),
    ),
)
