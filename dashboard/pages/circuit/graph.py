"""The graph of a trace: drawn, and one node of it in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dash import dcc, html

from attlas.dashboard.components import button_link, card, metric_cards, picker, short, table
from attlas.dashboard.components.network import network
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.page import Data, Params
from attlas.dashboard.pages.circuit.setup import Setup
from attlas.dashboard.pages.circuit.view import here, step
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme

THRESHOLDS = ("0.01", "0.02", "0.05", "0.1")
DEFAULT_THRESHOLD = "0.02"
COLUMN, ROW = 150.0, 92.0  # px between tokens and between layers, of a shallow model
DEEPEST, WIDEST = 1400.0, 1500.0  # px of the drawing before it is fitted into its frame
FRAMES = (460, 1000)  # least and most height of the frame, px


def graph_data(reader: WorkspaceReader, found: Data, setup: Setup, params: Params, ask: Callable[..., Any]) -> None:
    """Ask for the graph, and put it into the data as plain values."""
    threshold = params["threshold"] if params.get("threshold") in THRESHOLDS else DEFAULT_THRESHOLD
    of = step(found["trail"][-1]) if found["trail"] and params.get("of") == "feature" else None
    attention = params.get("keys") != "no"
    found |= {"threshold": threshold, "of": "feature" if of else "logits", "keys": "yes" if attention else "no"}
    title = f"trace of {found['trail'][-1]}" if of else "trace of the logit difference"
    graph = ask(reader, found, "graph", setup, (of, float(threshold), attention), title, job=True)
    found["graph"] = None if graph is None else plain(graph)


def plain(graph: Any) -> dict[str, Any]:
    """A CircuitGraph as JSON values, with places to draw its nodes at."""
    from attlas.analyses.circuits.graph_plot import layout

    where = layout(graph)
    return {
        "target": graph.target,
        "tokens": list(graph.token_text),
        "nodes": [{**vars(node), "x": where[node.id][0], "y": where[node.id][1]} for node in graph.nodes],
        "edges": [{**vars(edge), "loadings": list(edge.loadings)} for edge in graph.edges],
        "summary": graph.summary(),
        "warnings": list(graph.warnings),
    }


def graph_view(data: Data, theme: Theme) -> Any:
    """Controls, the graph, the node in focus."""
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
    return draw(data, data["graph"], theme, controls, "node", data["params"].get("node"))


def draw(
    data: Data, graph: dict[str, Any], theme: Theme, controls: Any = None, pick: str = "", chosen: str | None = None
) -> html.Div:
    """A graph as a figure and as a table, beside the node in focus."""
    s = graph["summary"]
    by_id = {node["id"]: node for node in graph["nodes"]}
    node = by_id.get(chosen or "", graph["nodes"][0])
    note = (
        f"{s['n_nodes']} nodes, {s['n_edges']} edges; largest gap {short(s['gap'])}. Across: the tokens that take part; up: "
        "layers; dashed at the right: what was cut off. Blue-green adds to the target, amber takes away; dotted: keys and "
        "queries. The wheel zooms, dragging moves."
    )
    rows = [
        {"node": _link(data, n, pick), "token": _token(graph, n), "value": n["value"], "influence": n["influence"]}
        for n in sorted(graph["nodes"], key=lambda n: -abs(n["influence"]))[:40]
    ]
    names = {"node": "node", "token": "token", "value": "value", "influence": "influence on the target"}
    parts = [
        *[html.P(f"Note: {w}.", className="note warning") for w in graph["warnings"]],
        _picture(graph, theme, pick, node["id"]),
        table(rows, names, summary="Nodes, the 40 largest"),
    ]
    return html.Div([card("Graph", *parts, note=note, controls=controls), _node(data, graph, node, pick)])


def _picture(graph: dict[str, Any], theme: Theme, pick: str, chosen: str) -> html.Div:
    drawn = [n for n in graph["nodes"] if n["kind"] != "constant"]
    there = {n["id"] for n in drawn}
    scale = max((abs(e["influence"]) for e in graph["edges"]), default=1.0) or 1.0
    low = min(n["y"] for n in drawn)
    # Only tokens that take part have a column.
    used = sorted({round(n["x"]) for n in drawn})
    column = {place: i for i, place in enumerate(used)}
    depth = max(n["y"] for n in drawn) - low + 1
    # A deep model gets narrower rows, wider columns and a taller frame, so that labels stay legible.
    row = min(ROW, DEEPEST / depth)
    across = COLUMN if row == ROW else max(COLUMN, WIDEST / len(used))
    nodes = [
        {
            "id": n["id"],
            "label": _label(n),
            "x": across * (column[round(n["x"])] + n["x"] - round(n["x"])),
            "y": -row * n["y"],
            "size": 9 + 19 * min(1.0, abs(n["influence"]) / scale),
            "kind": n["kind"],
        }
        for n in drawn
    ]
    nodes += [
        {
            "id": f"token {i}",
            "label": text,
            "x": across * column[i],
            "y": -row * low + 0.7 * ROW,
            "size": 1,
            "kind": "text",
        }
        for i, text in enumerate([*[f"{i} {visible(t)}" for i, t in enumerate(graph["tokens"])], "cut off"])
        if i in column
    ]
    edges = [
        {
            "source": e["source"],
            "target": e["target"],
            "weight": 0.8 + 5 * abs(e["influence"]) / scale if e["via"] == "value" else 1.4,
            "sign": 0 if e["via"] != "value" else 1 if e["influence"] > 0 else -1,
        }
        for e in graph["edges"]
        if e["source"] in there
    ]
    height = int(min(FRAMES[1], max(FRAMES[0], 0.72 * row * depth)))
    return network(nodes, edges, theme, f"graph of {graph['target']}", pick=pick, chosen=chosen, height=height)


def _label(node: dict[str, Any]) -> str:
    short_names = {"feature": f"{node['layer']}/{node['feature']}", "head": f"{node['layer']}.{node['head']}"}
    if node["kind"] == "remainder":
        return f"{node['n_terms']} cut"
    return short_names.get(
        node["kind"], node["kind"] + (f" {node['layer']}" if node["kind"] in ("mlp", "error", "bias") else "")
    )


def _token(graph: dict[str, Any], node: dict[str, Any]) -> str:
    position = node["position"]
    return f"{position} {visible(graph['tokens'][position])}" if 0 <= position < len(graph["tokens"]) else ""


def _link(data: Data, node: dict[str, Any], pick: str) -> Any:
    return dcc.Link(node["id"], href=here(data, **{pick: node["id"]})) if pick else node["id"]


def _node(data: Data, graph: dict[str, Any], node: dict[str, Any], pick: str) -> Any:
    """One node: what it is, what can be done with it, what feeds it and what it feeds."""
    by_id = {n["id"]: n for n in graph["nodes"]}

    def side(edges: list[dict[str, Any]], end: str) -> list[dict[str, Any]]:
        return [
            {
                "node": _link(data, by_id[e[end]], pick),
                "token": _token(graph, by_id[e[end]]),
                "via": e["via"],
                "weight": e["weight"],
                "heads": ", ".join(f"{h}: {short(v)}" for h, v in enumerate(e["loadings"]) if v),
            }
            for e in edges
        ]

    into = sorted((e for e in graph["edges"] if e["target"] == node["id"]), key=lambda e: -abs(e["weight"]))
    out = sorted((e for e in graph["edges"] if e["source"] == node["id"]), key=lambda e: -abs(e["weight"]))
    names = {"node": "node", "token": "token", "via": "via", "weight": "its part", "heads": "by head"}
    numbers = metric_cards(
        [
            ("Value", node["value"], "logits, activation or influence"),
            ("Influence", node["influence"], "what reaches the target"),
            ("Gap", node["gap"], "of its terms' sum, relative"),
            ("Terms cut", node["n_terms"] or None, f"Σ |influence| {short(node['cut'])}"),
        ]
    )
    return html.Div(
        [
            card(
                f"{node['id']} {_token(graph, node)}",
                numbers,
                html.Div(_buttons(data, node), className="tags apart"),
                span=2,
            ),
            card("Fed by", table(side(into, "source"), names, summary="Edges in", open_=True) or _none()),
            card("Feeds", table(side(out, "target"), names, summary="Edges out", open_=True) or _none()),
        ],
        className="columns node",
    )


def _none() -> Any:
    return html.P("Nothing in this graph.", className="note")


def _buttons(data: Data, node: dict[str, Any]) -> list[Any]:
    found = []
    if node["kind"] in ("feature", "head", "mlp", "error") and "ablated" in data and data["view"] == "graph":
        ablate = ",".join(dict.fromkeys([*data["ablated"], node["id"]]))
        found.append(button_link("Take it out", here(data, ablate=ablate)))
    if node["kind"] == "feature" and data["view"] == "graph":
        step = f"{node['layer']}/{node['feature']}@{node['position']}"
        found.append(button_link("Its tokens and heads", here(data, view="features", trail=step, at=None)))
    if node["kind"] == "head" and data["view"] == "graph":
        place = {"layer": node["layer"], "head": node["head"], "dest": node["position"], "src": None}
        found.append(button_link("Why it looks there", here(data, view="attention", **place)))
    return found
