"""The graph of a trace: drawn, and as a table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from dash import dcc, html

from attlas.dashboard.components import card, picker, short, table
from attlas.dashboard.components.circuit_graph import circuit_graph
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.notes import book
from attlas.dashboard.page import Data, Params, link
from attlas.dashboard.pages.circuit.names import feature_names, told_by_layer
from attlas.dashboard.pages.circuit.setup import Setup
from attlas.dashboard.pages.circuit.view import here, step
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.notes import read_groups

THRESHOLDS = ("0.01", "0.02", "0.05", "0.1")
DEFAULT_THRESHOLD = "0.02"
REST = "remainder"  # one node for all that was cut off


def graph_data(reader: WorkspaceReader, found: Data, setup: Setup, params: Params, ask: Callable[..., Any]) -> None:
    """Ask for the graph, and put it into the data as plain values."""
    threshold = params["threshold"] if params.get("threshold") in THRESHOLDS else DEFAULT_THRESHOLD
    of = step(found["trail"][-1]) if found["trail"] and params.get("of") == "feature" else None
    attention = params.get("keys") != "no"
    found |= {"threshold": threshold, "of": "feature" if of else "logits", "keys": "yes" if attention else "no"}
    title = f"trace of {found['trail'][-1]}" if of else "trace of the logit difference"
    graph = ask(reader, found, "graph", setup, (of, float(threshold), attention), title, job=True)
    found["graph"] = None if graph is None else plain(reader, graph, told_by_layer(found))


def plain(reader: WorkspaceReader, graph: Any, told: Mapping[int, str]) -> dict[str, Any]:
    """A CircuitGraph as JSON values, with its features' names and the groups that were made of its nodes.

    Args:
        told: layer → run that interprets the features of the autoencoder there.
    """
    # What is grouped stays grouped at another threshold.
    saes = sorted(graph.saes.items())
    identity = repr((graph.model.hash, graph.tokens, graph.target, graph.right, graph.wrong, saes))
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    return {
        "target": graph.target,
        "tokens": list(graph.token_text),
        "nodes": [vars(node) for node in graph.nodes],
        "edges": [{**vars(edge), "loadings": list(edge.loadings)} for edge in graph.edges],
        "summary": graph.summary(),
        "warnings": list(graph.warnings),
        "key": key,
        "names": feature_names(reader, told, ((n.layer, n.feature) for n in graph.nodes if n.kind == "feature")),
        "told": {str(layer): run for layer, run in told.items()},
        "groups": read_groups(book(reader), key),
    }


def graph_view(data: Data, theme: Theme) -> Any:
    """Controls and the graph."""
    controls = [
        picker(
            "threshold",
            "Cut below",
            [(t, f"{float(t):.0%} of the target") for t in THRESHOLDS],
            data["threshold"],
            DEFAULT_THRESHOLD,
        ),
        picker("keys", "Keys and queries", [("yes", "shown"), ("no", "left out")], data["keys"], "yes"),
    ]
    if data["trail"]:
        options = [("logits", "the logit difference"), ("feature", f"feature {data['trail'][-1]}")]
        controls.insert(0, picker("of", "Trace", options, data["of"], "logits"))
    if data["graph"] is None:
        return card("Graph", controls=controls)
    return draw(data, data["graph"], controls)


def draw(data: Data, graph: dict[str, Any], controls: Any = None) -> Any:
    """A graph under the pointer, and its nodes as a table."""
    s = graph["summary"]
    note = (
        f"{s['n_nodes']} nodes, {s['n_edges']} edges; largest gap {short(s['gap'])}. Point at a node to see what feeds it; a "
        "click keeps it beside, shift-click pins it, pinned nodes can be grouped. By keyboard: up and down follow the "
        "strongest edge, left and right the layer, P pins. Ctrl and the wheel zoom, dragging moves."
    )
    rows = [
        {"node": _link(data, n), "name": _name(graph, n), "token": _token(graph, n)}
        | {"value": n["value"], "influence": n["influence"]}
        for n in sorted(graph["nodes"], key=lambda n: -abs(n["influence"]))[:40]
    ]
    names = {
        "node": "node",
        "name": "name",
        "token": "token",
        "value": "value",
        "influence": "influence on the target",
    }
    return card(
        "Graph",
        *[html.P(f"Note: {w}.", className="note warning") for w in graph["warnings"]],
        shown(graph, data),
        table(rows, names, summary="Nodes, the 40 largest"),
        note=note,
        controls=controls,
    )


def shown(graph: dict[str, Any], data: Data) -> html.Div:
    """The graph as a component."""
    nodes = [_shown_node(graph, n, data) for n in graph["nodes"] if n["kind"] not in ("constant", "remainder")]
    cut = [n for n in graph["nodes"] if n["kind"] == "remainder"]
    if cut:
        nodes.append(
            {
                "id": REST,
                "kind": "remainder",
                "layer": min(n["layer"] for n in cut),
                "position": -1,
                "label": f"{sum(n['n_terms'] for n in cut):,} cut",
                "title": "What was cut off",
                "sub": "",
                "value": None,
                "influence": sum(n["influence"] for n in cut),
                "n_terms": sum(n["n_terms"] for n in cut),
                "cut": sum(n["cut"] for n in cut),
                "actions": [],
            }
        )
    merged = {n["id"] for n in cut}
    there = {n["id"] for n in nodes}
    edges = [
        {
            "source": source,
            "target": e["target"],
            "via": e["via"],
            "weight": e["weight"],
            "influence": e["influence"],
            "heads": ", ".join(f"{h}: {short(v)}" for h, v in enumerate(e["loadings"]) if v),
        }
        for e in graph["edges"]
        for source in (REST if e["source"] in merged else e["source"],)
        if source in there and e["target"] in there
    ]
    asked = data["params"].get("node", "")
    return circuit_graph(
        nodes,
        edges,
        target=graph["target"],
        tokens=[visible(t) for t in graph["tokens"]],
        label=f"Graph of {graph['target']}: {len(nodes)} nodes, {len(edges)} edges",
        chosen=REST if asked in merged else asked,
        pick="node",
        groups=graph["groups"],
        save=link("/circuit-groups", graph=graph["key"]),
    )


def _shown_node(graph: dict[str, Any], node: dict[str, Any], data: Data) -> dict[str, Any]:
    kept = {name: node[name] for name in ("id", "kind", "layer", "position", "value", "influence", "gap")}
    if node["kind"] not in ("feature", "logits"):
        kept["value"] = None  # it is the influence, once more
    said = {"label": _label(node), "sub": _name(graph, node), "title": node["id"]}
    return {**kept, **said, "actions": _actions(graph, node, data)}


def _label(node: dict[str, Any]) -> str:
    short_names = {"feature": f"{node['layer']}/{node['feature']}", "head": f"{node['layer']}.{node['head']}"}
    layered = f" {node['layer']}" if node["kind"] in ("mlp", "error", "bias") else ""
    return short_names.get(node["kind"], node["kind"] + layered)


def _name(graph: dict[str, Any], node: dict[str, Any]) -> str:
    found: str = graph["names"].get(f"{node['layer']}/{node['feature']}", "") if node["kind"] == "feature" else ""
    return found


def _token(graph: dict[str, Any], node: dict[str, Any]) -> str:
    position = node["position"]
    return f"{position} {visible(graph['tokens'][position])}" if 0 <= position < len(graph["tokens"]) else ""


def _link(data: Data, node: dict[str, Any]) -> Any:
    return dcc.Link(node["id"], href=here(data, node=node["id"]))


def _actions(graph: dict[str, Any], node: dict[str, Any], data: Data) -> list[tuple[str, dict[str, Any]]]:
    """What can be done with a node, as changes of the URL."""
    found: list[tuple[str, dict[str, Any]]] = []
    asks = data["view"] == "graph"  # a saved run's prompt is not the page's
    if asks and node["kind"] in ("feature", "head", "mlp", "error"):
        found.append(("Take it out", {"ablate": ",".join(dict.fromkeys([*data["ablated"], node["id"]]))}))
    if asks and node["kind"] == "feature":
        trail = f"{node['layer']}/{node['feature']}@{node['position']}"
        found.append(("Its tokens and heads", {"view": "features", "trail": trail, "at": None}))
    run = graph["told"].get(str(node["layer"]))
    if node["kind"] == "feature" and run:
        found.append(("What it means", {"path": "/feature", "run": run, "id": node["feature"]}))
    if asks and node["kind"] == "head":
        place = {"layer": node["layer"], "head": node["head"], "dest": node["position"], "src": None}
        found.append(("Why it looks there", {"view": "attention", **place}))
    if node["kind"] == "head":
        model = data["lm"] if asks else data["saved"]["model"]
        found.append(("The head", {"path": "/head", "layer": node["layer"], "head": node["head"], "model": model}))
    return found
