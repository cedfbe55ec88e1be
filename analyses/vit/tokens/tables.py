"""Tables of a "vit_tokens" run: what patches receive, and what their absence does."""

from __future__ import annotations

import pyarrow as pa

from attlas.analyses.common.columns import HEAD, LAYER, N_IMAGES, interval
from attlas.data.schema import TableSchema, column

_ROW = column("row", pa.int16(), "patches", "row of the patch, from the top")
_COLUMN = column("column", pa.int16(), "patches", "column of the patch, from the left")

COLUMN_MASS = TableSchema(
    "column_mass",
    "one head, one patch",
    (
        LAYER,
        HEAD,
        _ROW,
        _COLUMN,
        column(
            "mass", pa.float64(), "fraction", "attention received, mean over queries and images; all tokens sum to 1"
        ),
    ),
)
TOKENS = TableSchema(
    "tokens",
    "one head",
    (
        LAYER,
        HEAD,
        column("cls_mass", pa.float64(), "fraction", "attention that CLS receives, mean over queries; 0 without CLS"),
        column("register_mass", pa.float64(), "fraction", "attention that other prefix tokens receive; 0 without"),
        column("leaf_share", pa.float64(), "fraction", "patches that receive less than half of the mean over patches"),
        column("gini", pa.float64(), "", "inequality of what patches receive: 0 equal, near 1 one has all"),
        N_IMAGES,
    ),
)
LEAF_TOKENS = TableSchema(
    "leaf_tokens",
    "one layer, one patch",
    (
        LAYER,
        _ROW,
        _COLUMN,
        column("frequency", pa.float64(), "fraction", "images in which the patch is among those that receive least"),
    ),
)
REMOVAL = TableSchema(
    "removal",
    "one layer, one order of removal, one share of patches, one metric",
    (
        column("layer", pa.int16(), "", "layer before which the patches go"),
        column("order", pa.string(), "", "least-received or most-received first, or random-0, random-1 …"),
        column("fraction", pa.float64(), "fraction", "patches removed"),
        column("metric", pa.string(), "", "accuracy, knn_accuracy, probe_accuracy, probability or similarity"),
        column("value", pa.float64(), "fraction", "mean over images; similarity is the cosine with the whole image's"),
        *interval("fraction"),
        N_IMAGES,
    ),
)
ROLLOUT = TableSchema(
    "rollout",
    "one test, one way to rank patches",
    (
        column("test", pa.string(), "", "deletion: most relevant patches go first; insertion: they come first"),
        column("method", pa.string(), "", "rollout, last_layer, column_mass, class_relevance, or random-0 …"),
        column("metric", pa.string(), "", "probability of the class, or similarity for backbones"),
        column("auc", pa.float64(), "fraction", "area under the curve over the share of patches removed"),
        *interval("fraction"),
        column("gain", pa.float64(), "fraction", "by how much it beats the mean random order; positive is better"),
        column("gain_low", pa.float64(), "fraction", "95 % bootstrap interval over images, lower end"),
        column("gain_high", pa.float64(), "fraction", "95 % bootstrap interval over images, upper end"),
        N_IMAGES,
    ),
)
SCHEMAS = (COLUMN_MASS, TOKENS, LEAF_TOKENS, REMOVAL, ROLLOUT)
