"""A circuit drawn over token positions (across) and layers (up)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.circuits.nodes import Node
from attlas.data.figures import LIGHT, new_figure

if TYPE_CHECKING:
    from attlas.analyses.circuits.graph import CircuitGraph

COLOURS = {
    "logits": LIGHT.ink,
    "feature": LIGHT.accent,
    "head": LIGHT.second,
    "mlp": LIGHT.third,
    "embed": LIGHT.muted,
    "position": LIGHT.muted,
    "error": LIGHT.categories[-1],
    "bias": LIGHT.muted,
    "constant": LIGHT.muted,
    "remainder": LIGHT.muted,
}
POSITIVE, NEGATIVE, ATTENTION = LIGHT.accent, LIGHT.second, LIGHT.muted


def layout(graph: CircuitGraph) -> dict[str, tuple[float, float]]:
    """id → (x, y): x is the token position, y the layer; nodes of one place are spread around it."""
    places: dict[tuple[int, float], list[Node]] = {}
    n = len(graph.tokens)
    for node in graph.nodes:
        half = 0.5 if node.kind == "mlp" else 0.0
        # Constants and remainders belong to no token: they stand in a column of their own, right of the prompt.
        column = node.position if node.position >= 0 else n
        places.setdefault((column, node.layer + half), []).append(node)
    found = {}
    for (column, layer), nodes in places.items():
        for i, node in enumerate(nodes):
            shift = (i - (len(nodes) - 1) / 2) / max(len(nodes), 2)
            found[node.id] = (column + 0.7 * shift, layer + 0.25 * shift)
    return found


def label(graph: CircuitGraph, node: Node) -> str:
    """What a person reads when pointing at a node."""
    token = f" {graph.text(node.position)!r}" if node.position >= 0 else ""
    more = f"<br>{node.n_terms} terms, Σ|influence| {node.cut:.3g}" if node.kind == "remainder" else ""
    return f"{node.id}{token}<br>value {node.value:.4g}<br>influence {node.influence:.4g}{more}"


def plot(graph: CircuitGraph) -> Any:
    """Plotly figure; line width is the edge's influence, dotted are keys and queries; constants are
    left out, remainders are hollow."""

    where = layout(graph)
    scale = max((abs(e.influence) for e in graph.edges), default=1.0) or 1.0
    figure = new_figure()
    for edge in sorted(graph.edges, key=lambda e: abs(e.influence)):
        if edge.source.startswith("constant"):
            continue
        (x0, y0), (x1, y1) = where[edge.source], where[edge.target]
        size = abs(edge.influence) / scale
        colour = POSITIVE if edge.influence > 0 else NEGATIVE
        line: dict[str, Any] = {"width": 0.5 + 5 * size, "color": colour}
        if edge.via != "value":
            size, line = 0.5, {"width": 1.5, "color": ATTENTION, "dash": "dot"}
        figure.add_scatter(
            x=[x0, x1],
            y=[y0, y1],
            mode="lines",
            line=line,
            opacity=0.15 + 0.7 * size,
            hoverinfo="skip",
            showlegend=False,
        )
    for kind, colour in COLOURS.items():
        nodes = [n for n in graph.nodes if n.kind == kind and kind != "constant"]
        if not nodes:
            continue
        hollow = kind == "remainder"
        figure.add_scatter(
            x=[where[n.id][0] for n in nodes],
            y=[where[n.id][1] for n in nodes],
            mode="markers",
            name=kind,
            customdata=[n.id for n in nodes],
            text=[label(graph, n) for n in nodes],
            hovertemplate="%{text}<extra></extra>",
            marker={
                "color": colour,
                "symbol": "circle-open" if hollow else "circle",
                "size": [8 + 14 * min(1.0, abs(n.influence) / scale) for n in nodes],
            },
        )
    ticks = [f"{text!r}"[1:-1] for text in graph.token_text]
    figure.update_xaxes(tickvals=list(range(len(ticks))), ticktext=ticks, tickangle=-60)
    figure.update_yaxes(title="layer", dtick=1)
    figure.update_layout(title=f"{graph.target} = {graph.nodes[0].value:.3g}", legend={"orientation": "h", "y": 1.1})
    return figure
