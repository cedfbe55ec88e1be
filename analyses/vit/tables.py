"""Tables of a "vit" run: importance and strength of every head."""

from __future__ import annotations

import pyarrow as pa

from attlas.analyses.common.columns import HEAD, LAYER, N_IMAGES, interval
from attlas.data.schema import TableSchema, column

_ABLATION = column(
    "ablation",
    pa.string(),
    "",
    "what the head's z is set to: mean_per_position, its mean over images at each position; zero; mean, over images and "
    "positions; resample, another image's (mean of several draws)",
)
_METRIC = column(
    "metric",
    pa.string(),
    "",
    "js, prob_drop, accuracy_drop or cls_distance; backbones with labels: knn_drop, probe_drop",
)
_CLASS = column("class", pa.int32(), "", "label of the images")
_CLASS_NAME = column("class_name", pa.string(), "", "name of the class, or its number where it has none")


def _mass(name: str, description: str) -> pa.Field:
    return column(name, pa.float64(), "fraction", description)


_VALUE = column("value", pa.float64(), "see metric", "mean over images; js in nats, the others in fractions")
_DISTANCE = column("mean_distance_px", pa.float64(), "px", "mean distance from a patch to where it looks")
_ENTROPY = column("entropy", pa.float64(), "nats", "entropy of patch queries")
_CLS_TO_PATCH = _mass("cls_to_patch", "attention of the CLS token on all patches; 0 without CLS")
_PATCH_TO_CLS = _mass("patch_to_cls", "attention of a patch on the CLS token; 0 without CLS")
_SELF = _mass("self", "attention of a patch on itself")

IMPORTANCE = TableSchema(
    "importance",
    "one head, one ablation, one metric",
    (LAYER, HEAD, _ABLATION, _METRIC, _VALUE, *interval("see metric"), N_IMAGES),
    only="where heads were ablated",
)
IMPORTANCE_BY_CLASS = TableSchema(
    "importance_by_class",
    "one head, one ablation, one metric, over the images of one class",
    (LAYER, HEAD, _ABLATION, _METRIC, _CLASS, _CLASS_NAME, _VALUE, *interval("see metric"), N_IMAGES),
    only="where heads were ablated and images have labels",
)
AGREEMENT = TableSchema(
    "agreement",
    "two ways of measuring importance",
    (
        column("first", pa.string(), "", "ablation:metric"),
        column("second", pa.string(), "", "ablation:metric"),
        column("spearman", pa.float64(), "", "rank correlation over heads; null where one measure is constant"),
        *interval(""),
        column("n_heads", pa.int32(), "heads", "heads ranked"),
    ),
    only="where heads were ablated",
)
RINGS = TableSchema(
    "rings",
    "one head, one ring of patches around the query",
    (
        LAYER,
        HEAD,
        column("hop", pa.int16(), "patches", "Chebyshev distance of the ring from the query patch"),
        column(
            "mass",
            pa.float64(),
            "fraction",
            "share of a patch query's attention on the ring; mean over all queries, each counted equally, 0 where the "
            "image holds none of the ring",
        ),
        column(
            "mean_per_patch",
            pa.float64(),
            "fraction",
            "attention per patch of the ring, each pair of query and patch counted equally: queries with more of the "
            "ring inside the image weigh more",
        ),
        column(
            "mean_per_patch_by_query",
            pa.float64(),
            "fraction",
            "the same, each query counted equally: mean over the ring's patches, then over queries that have any",
        ),
        N_IMAGES,
    ),
    only="where strength was measured",
)
STRENGTH = TableSchema(
    "strength",
    "one head",
    (
        LAYER,
        HEAD,
        _CLS_TO_PATCH,
        _PATCH_TO_CLS,
        _mass("patch_to_prefix", "attention of a patch on CLS and register tokens"),
        _mass("cls_to_registers", "attention of CLS on the other prefix tokens; 0 without"),
        _mass("patch_to_registers", "attention of a patch on prefix tokens other than CLS; 0 without"),
        _mass("registers_to_patch", "attention of prefix tokens other than CLS on all patches; 0 without"),
        _SELF,
        _DISTANCE,
        column("mean_distance_low", pa.float64(), "px", "95 % bootstrap interval over images, lower end"),
        column("mean_distance_high", pa.float64(), "px", "95 % bootstrap interval over images, upper end"),
        _ENTROPY,
        _mass("content_relevance", "share of the recentred map's variance between images; near 0 content-agnostic"),
        N_IMAGES,
    ),
    only="where strength was measured",
)
STRENGTH_BY_CLASS = TableSchema(
    "strength_by_class",
    "one head, over the images of one class",
    (LAYER, HEAD, _CLASS, _CLASS_NAME, _CLS_TO_PATCH, _PATCH_TO_CLS, _SELF, _DISTANCE, _ENTROPY, N_IMAGES),
    only="where strength was measured and images have labels",
)
TREND = TableSchema(
    "trend",
    "one measure of strength, over layers",
    (
        column("measure", pa.string(), "", "a column of table strength"),
        column("slope", pa.float64(), "unit a layer", "least-squares slope over layers of the mean over heads"),
        *interval("unit a layer"),
        column("first_layer", pa.float64(), "see measure", "mean over heads of the first layer"),
        column("last_layer", pa.float64(), "see measure", "mean over heads of the last layer"),
        N_IMAGES,
    ),
    only="where strength was measured",
)
SCHEMAS = (IMPORTANCE, IMPORTANCE_BY_CLASS, AGREEMENT, RINGS, STRENGTH, STRENGTH_BY_CLASS, TREND)
