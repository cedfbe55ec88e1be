"""A circuit as a graph: nodes that hold coefficients, edges that say how much of one node comes from another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from attlas.analyses.circuits.graph_files import FORMAT, VERSION, save_json
from attlas.analyses.circuits.graph_plot import plot
from attlas.analyses.circuits.nodes import EDGES, NODES, Edge, Node
from attlas.data.result import Result
from attlas.data.workspace import Ref, jsonable
from attlas.errors import ConfigError, nearest


@dataclass(frozen=True)
class CircuitGraph(Result):
    """What a trace found.

    Attributes:
        target: id of the node that was traced.
        nodes, edges: the target first, then from late layers to early ones.
        tokens: token ids and their text.
        model: name and hash.
        saes: layer → hash of the autoencoder used there.
        settings: threshold, top_n and so on.
        warnings: what a reader should know, such as that the graph was cut at its largest size.
        answers: for a logit target, token ids right and wrong.
    """

    kind: ClassVar[str] = "circuit"

    target: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    tokens: tuple[int, ...]
    token_text: tuple[str, ...]
    model: Ref
    saes: dict[int, str]
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()

    def __post_init__(self) -> None:  # as JSON holds them, so that a graph read back equals the one written
        object.__setattr__(self, "settings", jsonable(self.settings))

    def node(self, id: str) -> Node:
        """A node by its name.

        Raises:
            ConfigError: there is none of that name; says near ones.
        """
        for node in self.nodes:
            if node.id == id:
                return node
        raise ConfigError(f"the graph has no node '{id}'{nearest(id, [n.id for n in self.nodes])}")

    def into(self, id: str) -> list[Edge]:
        """Edges that feed a node, the largest by size first."""
        return sorted((e for e in self.edges if e.target == id), key=lambda e: -abs(e.weight))

    def out_of(self, id: str) -> list[Edge]:
        """Edges that a node feeds, the largest by size first."""
        return sorted((e for e in self.edges if e.source == id), key=lambda e: -abs(e.influence))

    def text(self, position: int) -> str:
        """The token at a position, "" where there is none."""
        return self.token_text[position] if 0 <= position < len(self.token_text) else ""

    @property
    def gap(self) -> float:
        """Largest relative gap of all followed nodes before pruning."""
        return max((n.gap for n in self.nodes if n.gap is not None), default=0.0)

    def heads(self) -> dict[tuple[int, int], float]:
        """(layer, head) → Σ |influence| it carries: head nodes by themselves, features by their edges' loadings."""
        found: dict[tuple[int, int], float] = {}
        by_id = {node.id: node for node in self.nodes}
        for node in self.nodes:
            if node.kind == "head":
                key = (node.layer, node.head)
                found[key] = found.get(key, 0.0) + abs(node.influence)
        for edge in self.edges:
            target = by_id[edge.target]
            if target.kind != "feature" or edge.via != "value" or not edge.loadings or edge.weight == 0:
                continue
            for head, loading in enumerate(edge.loadings):
                key = (target.layer, head)
                found[key] = found.get(key, 0.0) + abs(loading * edge.influence / edge.weight)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def nodes_table(self) -> pa.Table:
        """Table circuit_nodes."""
        names = [c.name for c in NODES.columns if c.name != "token"]
        return NODES.table(
            [{**{name: getattr(n, name) for name in names}, "token": self.text(n.position)} for n in self.nodes]
        )

    def edges_table(self) -> pa.Table:
        """Table circuit_edges."""
        return EDGES.table([{**vars(e), "loadings": list(e.loadings)} for e in self.edges])

    def tables(self) -> dict[str, pa.Table]:
        return {"circuit_nodes": self.nodes_table(), "circuit_edges": self.edges_table()}

    def summary(self) -> dict[str, Any]:
        """Headline numbers."""
        target = self.nodes[0]
        rest = [n for n in self.nodes if n.kind == "remainder"]
        return {
            "target": self.target,
            "value": target.value,
            "n_nodes": len(self.nodes),
            "n_edges": len(self.edges),
            "gap": self.gap,
            "remainder_terms": sum(n.n_terms for n in rest),
            "remainder": sum(n.influence for n in rest),
            "heads": [f"{layer}.{head}" for layer, head in list(self.heads())[:5]],
            "warnings": list(self.warnings),
            "tokens": list(self.token_text),
        }

    def plot(self) -> Any:
        """The graph over token positions and layers; green adds to the target, purple takes away."""
        return plot(self)

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return self.model, None

    def _recorded_config(self) -> dict[str, Any]:
        return self.settings

    @property
    def _seed(self) -> int | None:
        return 0

    def _files(self) -> dict[str, Callable[[Path], Any]]:
        """The graph whole, as the web viewer reads it."""
        return {"graph/graph.json": lambda path: save_json(self, path)}


def load_json(path: str | Path) -> CircuitGraph:
    """Read what save_json wrote.

    Raises:
        ConfigError: the file is not there, not such a graph, or of a newer version.

    Example:
        >>> from attlas.analyses.circuits import LogitTarget, TraceConfig, load_json, save_json, trace
        >>> target = LogitTarget((int(task.right[0, 0]),))
        >>> graph = trace(model, task.tokens[0], target, TraceConfig(top_n=4))
        >>> load_json(save_json(graph, folder / "graph.json")) == graph
        True
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"'{path}' cannot be read as a circuit ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(
            f"'{path}' is not a circuit graph (no format '{FORMAT}'); write one with attlas circuit trace"
        )
    if data.get("version", 0) > VERSION:
        raise ConfigError(f"'{path}' has format version {data['version']}, this Attlas reads {VERSION}; update Attlas")
    try:
        return CircuitGraph(
            target=data["target"],
            nodes=tuple(Node(**node) for node in data["nodes"]),
            edges=tuple(Edge(**{**edge, "loadings": tuple(edge["loadings"])}) for edge in data["edges"]),
            tokens=tuple(data["tokens"]),
            token_text=tuple(data["token_text"]),
            model=Ref(data["model"]["name"], data["model"]["hash"]),
            saes={int(layer): hash for layer, hash in data["saes"].items()},
            settings=data["settings"],
            warnings=tuple(data["warnings"]),
            right=tuple(data["right"]),
            wrong=tuple(data["wrong"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"'{path}' is damaged: {error}") from error
