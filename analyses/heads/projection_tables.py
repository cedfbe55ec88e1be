"""Tables of a run of `head_points`: drawn pairs of query and key, the axes they lie on, and maps."""

from __future__ import annotations

import pyarrow as pa

from attlas.analyses.common.columns import HEAD, LAYER, SEQUENCE
from attlas.data.schema import TableSchema, column

VECTORS = {
    "q": "query before rotation",
    "q_rotated": "query after rotation",
    "k": "key before rotation",
    "k_rotated": "key after rotation",
    "v": "value of the key's position",
    "z": "the head's answer at the query's position, Σ a·v",
}
ROTATED = ("q_rotated", "k_rotated")
_POINT = column("point", pa.int16(), "", "number of the pair, from 0")
_OF = column("vectors", pa.string(), "", ", ".join(f"{name}: {text}" for name, text in VECTORS.items()))
HEAD_POINTS = TableSchema(
    "head_points",
    "one head and one pair of query and key, drawn by weight",
    (
        LAYER,
        HEAD,
        _POINT,
        SEQUENCE,
        column("query_at", pa.int32(), "positions", "position of the query"),
        column("key_at", pa.int32(), "positions", "position of its partner, the key"),
        column("pair_weight", pa.float64(), "fraction", "attention of the query to the key"),
        column("query_token", pa.string(), "", "text of the query's token; empty for images"),
        column("key_token", pa.string(), "", "text of the key's token; empty for images"),
        *(
            column(
                f"{name}_axes",
                pa.list_(pa.float32()),
                "",
                f"{text}: coordinates on its principal components, the largest first"
                + ("; empty without rotary embeddings" if name in ROTATED else ""),
            )
            for name, text in VECTORS.items()
        ),
    ),
)
HEAD_AXES = TableSchema(
    "head_axes",
    "one head and one kind of its vectors",
    (
        LAYER,
        HEAD,
        _OF,
        column("axes_share", pa.list_(pa.float64()), "fraction", "share of the variance on each component kept"),
        column("n_positions", pa.int64(), "tokens", "tokens or patches behind the first that the components are of"),
    ),
)
HEAD_MAPS = TableSchema(
    "head_maps",
    "one head, one kind of its vectors and one drawn pair",
    (
        LAYER,
        HEAD,
        _OF,
        _POINT,
        column("map_x", pa.float64(), "", "place on a map in two dimensions (UMAP or t-SNE), first coordinate"),
        column("map_y", pa.float64(), "", "second coordinate"),
    ),
    only="where a map was asked for",
)
SCHEMAS = (HEAD_POINTS, HEAD_AXES, HEAD_MAPS)
