"""Graphs as files: Attlas's own JSON, GraphML, and the graph format of circuit-tracer's viewer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from attlas.data.files import write_text_atomic
from attlas.data.workspace import jsonable
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.analyses.circuits.graph import CircuitGraph

FORMAT = "attlas-circuit"
VERSION = 1


def to_json(graph: CircuitGraph) -> dict[str, Any]:
    """The graph as plain values; docs/circuits.md says what each is."""
    found: dict[str, Any] = jsonable(
        {
            "format": FORMAT,
            "version": VERSION,
            "target": graph.target,
            "model": {"name": graph.model.name, "hash": graph.model.hash},
            "saes": {str(layer): hash for layer, hash in graph.saes.items()},
            "tokens": list(graph.tokens),
            "token_text": list(graph.token_text),
            "right": list(graph.right),
            "wrong": list(graph.wrong),
            "settings": graph.settings,
            "warnings": list(graph.warnings),
            "nodes": [vars(node) for node in graph.nodes],
            "edges": [vars(edge) for edge in graph.edges],
        }
    )
    return found


def save_json(graph: CircuitGraph, path: str | Path) -> Path:
    """Write the graph; atomic.

    Example:
        >>> from attlas.analyses.circuits import LogitTarget, TraceConfig, save_json, trace
        >>> target = LogitTarget((int(task.right[0, 0]),))
        >>> graph = trace(model, task.tokens[0], target, TraceConfig(top_n=4))
        >>> save_json(graph, folder / "graph.json").name
        'graph.json'
    """
    path = Path(path)
    write_text_atomic(path, json.dumps(to_json(graph), ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    return path


def check_replaceable(path: str | Path) -> None:
    """Refuse to write over a file that holds something else than a circuit.

    Raises:
        ConfigError: the file is there and was not written by this module.
    """
    path = Path(path)
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not any(mark in text for mark in (f'"{FORMAT}"', '<graph id="circuit"', '"qParams"')):
        raise ConfigError(f"'{path}' is there and holds no circuit; give another name")


_GRAPHML_TYPES = {str: "string", int: "long", float: "double", bool: "boolean"}


def save_graphml(graph: CircuitGraph, path: str | Path) -> Path:
    """Write the graph for Gephi, Cytoscape, networkx …; head loadings are one text attribute, space-joined.

    Example:
        >>> from attlas.analyses.circuits import LogitTarget, TraceConfig, save_graphml, trace
        >>> target = LogitTarget((int(task.right[0, 0]),))
        >>> graph = trace(model, task.tokens[0], target, TraceConfig(top_n=4))
        >>> save_graphml(graph, folder / "graph.graphml").name
        'graph.graphml'
    """
    path = Path(path)
    root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    rows: dict[str, list[dict[str, Any]]] = {"node": [], "edge": []}
    for node in graph.nodes:
        rows["node"].append({**vars(node), "token": graph.text(node.position)})
    for edge in graph.edges:
        rows["edge"].append({**vars(edge), "loadings": " ".join(f"{x:.6g}" for x in edge.loadings)})
    keys: dict[tuple[str, str], str] = {}
    for kind, found in rows.items():
        for name in found[0] if found else ():
            if name in ("id", "source", "target"):
                continue
            sample = next((row[name] for row in found if row[name] is not None), "")
            key = keys[(kind, name)] = f"{kind}_{name}"
            attributes = {"id": key, "for": kind, "attr.name": name, "attr.type": _GRAPHML_TYPES[type(sample)]}
            ElementTree.SubElement(root, "key", attributes)
    body = ElementTree.SubElement(root, "graph", id="circuit", edgedefault="directed")
    for kind, found in rows.items():
        for row in found:
            names = {"id": row["id"]} if kind == "node" else {"source": row["source"], "target": row["target"]}
            element = ElementTree.SubElement(body, kind, names)
            for name, value in row.items():
                if (kind, name) in keys and value is not None:
                    text = str(value).lower() if isinstance(value, bool) else _clean(str(value))
                    ElementTree.SubElement(element, "data", key=keys[(kind, name)]).text = text
    ElementTree.indent(root)
    text = '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
    write_text_atomic(path, text)
    return path


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold (byte-level tokens can be such)."""
    return "".join(c if c in "\t\n" or ord(c) >= 32 else "�" for c in text)


def to_circuit_tracer(graph: CircuitGraph, slug: str = "attlas") -> dict[str, Any]:
    """The graph in the JSON that circuit-tracer's viewer reads (metadata, qParams, nodes, links).

    What that format has no word for goes under one of its own: heads, errors and MLPs become "mlp reconstruction error" nodes
    with their name in `clerp`, features become "cross layer transcoder" nodes; head loadings, constants, keys and queries
    are left out (remainders stay, as error nodes). Links hold the influence on the target.
    """
    kinds = {"embed": "embedding", "position": "embedding", "feature": "cross layer transcoder", "logits": "logit"}
    n_layers = max(node.layer for node in graph.nodes)
    names: dict[str, str] = {}
    nodes = []
    for index, node in enumerate(n for n in graph.nodes if n.kind != "constant"):
        layer = "E" if node.kind in ("embed", "position") else str(node.layer if node.layer >= 0 else n_layers)
        position = node.position if node.position >= 0 else len(graph.tokens) - 1
        feature = node.feature if node.feature >= 0 else index
        names[node.id] = f"{layer}_{feature}_{position}" if node.kind == "feature" else f"{layer}_a{index}_{position}"
        nodes.append(
            {
                "node_id": names[node.id],
                "feature": feature,
                "layer": layer,
                "ctx_idx": position,
                "feature_type": kinds.get(node.kind, "mlp reconstruction error"),
                "token_prob": 0.0,
                "is_target_logit": node.kind == "logits",
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": f"{layer}_{feature}-0",
                "clerp": f"{node.id} {graph.text(node.position)!r}",
                "influence": node.influence,
                "activation": node.value if node.kind == "feature" else None,
            }
        )
    links = [
        {"source": names[e.source], "target": names[e.target], "weight": e.influence}
        for e in graph.edges
        if e.source in names and e.via == "value"
    ]
    return {
        "metadata": {
            "slug": slug,
            "scan": graph.model.name,
            "prompt_tokens": list(graph.token_text),
            "prompt": "".join(graph.token_text),
            "node_threshold": graph.settings.get("threshold"),
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": links,
    }


def save_circuit_tracer(graph: CircuitGraph, path: str | Path, slug: str = "attlas") -> Path:
    """Write `to_circuit_tracer`'s JSON; atomic.

    Example:
        >>> from attlas.analyses.circuits import LogitTarget, TraceConfig, save_circuit_tracer, trace
        >>> target = LogitTarget((int(task.right[0, 0]),))
        >>> graph = trace(model, task.tokens[0], target, TraceConfig(top_n=4))
        >>> save_circuit_tracer(graph, folder / "graph.ct.json").name
        'graph.ct.json'
    """
    path = Path(path)
    write_text_atomic(path, json.dumps(to_circuit_tracer(graph, slug), ensure_ascii=False) + "\n")
    return path
