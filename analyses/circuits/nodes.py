"""Nodes and edges of a circuit's graph, and the tables they are written to."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from attlas.analyses.circuits.frozen import Part
from attlas.data.schema import TableSchema, column

NODES = TableSchema(
    "circuit_nodes",
    "one node of the graph",
    (
        column("id", pa.string(), "", "unique name, such as feature 2/831 @5"),
        column(
            "kind",
            pa.string(),
            "",
            "logits, feature, head, error, mlp, embed, position, bias, constant (of norms and biases) or remainder",
        ),
        column("layer", pa.int16(), "", "layer; −1 for embeddings, the number of layers for logits"),
        column("position", pa.int32(), "tokens", "token position; −1 for constants and remainders"),
        column("token", pa.string(), "", "text of the token there"),
        column("head", pa.int16(), "", "head; −1 for none"),
        column("feature", pa.int32(), "", "feature; −1 for none"),
        column("value", pa.float64(), "mixed", "logits, a feature's activation, or for the rest its influence"),
        column("influence", pa.float64(), "target", "what reaches the target through the graph's edges"),
        column("followed", pa.bool_(), "", "whether it was traced further back"),
        column("gap", pa.float64(), "fraction", "|Σ incoming − value| / |value| before pruning; null if not followed"),
        column("n_terms", pa.int32(), "", "remainders: how many terms were cut off; otherwise 0"),
        column("cut", pa.float64(), "target", "remainders: Σ |influence| of the terms cut off; otherwise 0"),
    ),
)


EDGES = TableSchema(
    "circuit_edges",
    "one edge of the graph",
    (
        column("source", pa.string(), "", "id of the upstream node"),
        column("target", pa.string(), "", "id of the node it feeds"),
        column(
            "via",
            pa.string(),
            "",
            "value: a part of the target node's value; key, query: a part of why its head looks where it looks",
        ),
        column("weight", pa.float64(), "target node", "its part of the value, or of the score (less the mean score)"),
        column("influence", pa.float64(), "target", "its part of the graph's target; 0 for keys and queries"),
        column(
            "loadings",
            pa.list_(pa.float64()),
            "target node",
            "the weight by head: of the layer that reads it, or"
            " into the logits of the layer that wrote it; empty where no head carries it",
        ),
    ),
)


SCHEMAS = (NODES, EDGES)


@dataclass(frozen=True)
class Node:
    """See the columns of circuit_nodes."""

    id: str
    kind: str
    layer: int
    position: int
    head: int = -1
    feature: int = -1
    value: float = 0.0
    influence: float = 0.0
    followed: bool = False
    gap: float | None = None
    n_terms: int = 0
    cut: float = 0.0

    @property
    def part(self) -> Part:
        """The term of the residual stream that it is."""
        return Part(self.kind, self.layer, self.position, self.head, self.feature)


@dataclass(frozen=True)
class Edge:
    """See the columns of circuit_edges."""

    source: str
    target: str
    weight: float
    influence: float
    loadings: tuple[float, ...] = ()
    via: str = "value"
