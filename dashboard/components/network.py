"""A graph of nodes and edges that can be moved, zoomed and clicked (Cytoscape)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_cytoscape as cyto
from dash import html

from attlas.dashboard.components.basic import attributes
from attlas.dashboard.theme import Theme

_GREY = "#8b929a"


def network(
    nodes: Sequence[dict[str, Any]],
    edges: Sequence[dict[str, Any]],
    theme: Theme,
    label: str,
    *,
    pick: str = "",
    chosen: str | None = None,
    height: int = 460,
) -> html.Div:
    """Nodes at fixed places with edges between them; the wheel zooms, dragging moves.

    Args:
        nodes: id, label, x, y, size (px), kind; a node of kind "text" is a label only.
        edges: source, target, weight (px), sign (1, −1, or 0 for a dotted line).
        pick: a click on a node sets this URL parameter to its id.
        chosen: id of the node to ring.
    """
    elements = [
        {
            "data": {"id": node["id"], "label": node["label"], "size": node["size"]},
            "position": {"x": node["x"], "y": node["y"]},
            "classes": node["kind"] + (" chosen" if node["id"] == chosen else ""),
            "selectable": node["kind"] != "text",
            "grabbable": node["kind"] != "text",
        }
        for node in nodes
    ]
    elements += [
        {
            "data": {"id": f"edge {i}", "source": e["source"], "target": e["target"], "weight": e["weight"]},
            "classes": {1: "more", -1: "less"}.get(e["sign"], "dotted"),
        }
        for i, e in enumerate(edges)
    ]
    inner = cyto.Cytoscape(
        id={"type": "network", "name": label, "pick": pick},
        elements=elements,
        layout={"name": "preset", "fit": True, "padding": 16},
        stylesheet=_style(theme),
        style={"width": "100%", "height": f"{height}px"},
        minZoom=0.15,
        maxZoom=3,
        responsive=True,
        boxSelectionEnabled=False,
    )
    return html.Div(inner, className="network", role="img", **attributes({"aria-label": label}))


def _style(theme: Theme) -> list[dict[str, Any]]:
    colours = {
        "logits": theme.ink,
        "feature": theme.accent,
        "head": theme.second,
        "mlp": theme.third,
        "error": "#b5484b",
        "embed": _GREY,
        "position": _GREY,
        "bias": _GREY,
    }
    node = {
        "label": "data(label)",
        "width": "data(size)",
        "height": "data(size)",
        "background-color": _GREY,
        "color": theme.ink,
        "font-size": 11,
        "font-family": "Inter Variable, system-ui, sans-serif",
        "text-valign": "bottom",
        "text-margin-y": 3,
    }
    line = {
        "width": "data(weight)",
        "curve-style": "bezier",
        "line-color": theme.accent,
        "target-arrow-color": theme.accent,
        "target-arrow-shape": "triangle",
        "arrow-scale": 0.7,
        "opacity": 0.65,
    }
    quiet = {"background-opacity": 0, "border-width": 0, "color": theme.muted, "events": "no", "text-valign": "center"}
    return [
        {"selector": "node", "style": node},
        *[{"selector": f"node.{kind}", "style": {"background-color": c}} for kind, c in colours.items()],
        {
            "selector": "node.remainder",
            "style": {
                "background-opacity": 0,
                "border-width": 1.5,
                "border-style": "dashed",
                "border-color": theme.muted,
            },
        },
        {"selector": "node.text", "style": quiet},
        {"selector": "node.chosen", "style": {"border-width": 3, "border-style": "solid", "border-color": theme.ink}},
        {"selector": "edge", "style": line},
        {"selector": "edge.less", "style": {"line-color": theme.second, "target-arrow-color": theme.second}},
        {
            "selector": "edge.dotted",
            "style": {"line-style": "dotted", "line-color": theme.muted, "target-arrow-color": theme.muted},
        },
    ]
