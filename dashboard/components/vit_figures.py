"""Figures of heads that are linked: a click chooses a head, a box around points lights its heads up in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from dash import html

from attlas.analyses.common.columns import Head
from attlas.dashboard.components.basic import attributes
from attlas.dashboard.components.figures import graph
from attlas.dashboard.theme import Theme, style

COLORS = ("#17647a", "#c0762b", "#7d8c4a", "#8a5a8f", "#b8434e", "#4f7fb5", "#b59a2e", "#5f6770", "#3f9b84", "#a8703f")
_FAINT = 0.12


def named(head: Head) -> str:
    """(1, 2) → "1.2"."""
    return f"{head[0]}.{head[1]}"


def heads_of(pairs: Sequence[Sequence[int]]) -> list[Head]:
    """Heads as pairs of numbers, however JSON brought them."""
    return [(int(pair[0]), int(pair[1])) for pair in pairs]


def head_map(
    rows: Sequence[dict[str, Any]], value: str, theme: Theme, *, unit: str, chosen: Head | None, lit: Sequence[Head]
) -> html.Div:
    """Layers × heads; a click chooses the head, the chosen one and those lit up are outlined."""
    layers, heads = sorted({r["layer"] for r in rows}), sorted({r["head"] for r in rows})
    cells = {(r["layer"], r["head"]): r.get(value) for r in rows}
    figure = go.Figure(
        go.Heatmap(
            z=[[cells.get((layer, head)) for head in heads] for layer in layers],
            x=heads,
            y=layers,
            xgap=2,
            ygap=2,
            colorscale=theme.scale(),
            hovertemplate=f"head %{{y}}.%{{x}}<br><b>%{{z:.4g}}</b> {unit}<extra></extra>",
            colorbar={"thickness": 8, "outlinewidth": 0, "tickfont": {"color": theme.muted, "size": 11}, "len": 1},
        )
    )
    for layer, head in dict.fromkeys([*lit, *([chosen] if chosen else [])]):
        strong = (layer, head) == chosen
        figure.add_shape(
            type="rect",
            x0=head - 0.48,
            x1=head + 0.48,
            y0=layer - 0.48,
            y1=layer + 0.48,
            line={"color": theme.second if strong else theme.ink, "width": 3 if strong else 1.5},
        )
    style(figure, theme, max(180, min(560, 70 + 34 * len(layers))), margin={"l": 44, "r": 8, "t": 8, "b": 40})
    figure.update_xaxes(title_text="head", showgrid=False, dtick=1, range=[-0.5, len(heads) - 0.5])
    figure.update_yaxes(title_text="layer", showgrid=False, dtick=1, range=[len(layers) - 0.5, -0.5])
    return graph(figure, f"heatmap of {value} by layer and head", pick="head,layer")


def strength_profile(
    rows: Sequence[dict[str, Any]],
    value: str,
    theme: Theme,
    *,
    unit: str,
    title: str,
    importance: dict[Head, float],
    chosen: Head | None,
    lit: Sequence[Head],
) -> html.Div:
    """A measure of strength by layer, a point a head, coloured by importance; the line is the mean of heads."""
    heads = [(r["layer"], r["head"]) for r in rows]
    layers = sorted({layer for layer, _ in heads})
    means = [_mean([r[value] for r in rows if r["layer"] == layer]) for layer in layers]
    n_heads = 1 + max(head for _, head in heads)
    bright = set(lit)
    figure = go.Figure(
        go.Scatter(x=layers, y=means, mode="lines", line={"color": theme.muted, "width": 1}, hoverinfo="skip")
    )
    figure.add_scatter(
        x=[layer + 0.5 * (head / max(1, n_heads - 1) - 0.5) for layer, head in heads],
        y=[r[value] for r in rows],
        mode="markers",
        customdata=[{"layer": a, "head": b, "heads": named((a, b)), "map": None} for a, b in heads],
        text=[named(h) for h in heads],
        marker={
            "size": [13 if h == chosen else 9 for h in heads],
            "color": [importance.get(h) for h in heads] if importance else theme.accent,
            "colorscale": theme.scale(),
            "line": {
                "color": [theme.second if h == chosen else theme.ink for h in heads],
                "width": [2.5 if h == chosen else 0.6 for h in heads],
            },
            "opacity": [1 if not bright or h in bright or h == chosen else _FAINT for h in heads],
        },
        hovertemplate=f"head %{{text}}<br><b>%{{y:.4g}}</b> {unit}<extra></extra>",
    )
    style(figure, theme, 300, showlegend=False, dragmode="select")
    figure.update_xaxes(title_text="layer", dtick=1 if len(layers) < 17 else None, showgrid=False)
    figure.update_yaxes(title_text=f"{title}, {unit}")
    return graph(figure, f"profile of {value} over layers", pick="*", brush="heads")


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def pattern_map(
    points: dict[str, list[Any]],
    theme: Theme,
    *,
    color: str,
    names: dict[int, str],
    importance: dict[Head, float],
    lit: Sequence[Head],
    cluster: int | None,
    chosen: int | None,
    picture: str,
) -> html.Div:
    """The plane of single-query maps, a point a map; the picture of the one under the pointer is shown beside it.

    Args:
        points: columns map, x, y, layer, head, cluster.
        color: "cluster", "layer", "head" or "importance".
        names: of clusters.
        lit: heads to light up; none lights all.
        cluster: the cluster to light up, or None.
        chosen: the map that is marked.
        picture: address of a map's picture, {} for the map.
    """
    heads = list(zip(points["layer"], points["head"], strict=True))
    bright = set(lit)
    on = [
        (not bright or h in bright) and (cluster is None or c == cluster)
        for h, c in zip(heads, points["cluster"], strict=True)
    ]
    figure = go.Figure()
    for label, members, paint in _groups(points, heads, color, names, importance, theme):
        figure.add_scatter(
            x=[points["x"][i] for i in members],
            y=[points["y"][i] for i in members],
            mode="markers",
            name=label,
            customdata=[
                {"map": points["map"][i], "layer": heads[i][0], "head": heads[i][1], "heads": named(heads[i])}
                for i in members
            ],
            text=[named(heads[i]) for i in members],
            marker={**paint, "size": 5, "opacity": [0.85 if on[i] else _FAINT for i in members]},
            hovertemplate="head %{text}<extra></extra>",
        )
    if chosen in points["map"]:
        i = points["map"].index(chosen)
        figure.add_scatter(
            x=[points["x"][i]],
            y=[points["y"][i]],
            mode="markers",
            marker={"size": 15, "symbol": "circle-open", "color": theme.ink, "line": {"width": 2.5}},
            hoverinfo="skip",
            showlegend=False,
        )
    style(figure, theme, 440, dragmode="select", showlegend=color in ("cluster", "head"))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    inner = graph(figure, "map of attention patterns", pick="*", brush="heads")
    return html.Div(inner, **attributes({"data-hover": picture}))


def _groups(
    points: dict[str, list[Any]],
    heads: list[Head],
    color: str,
    names: dict[int, str],
    importance: dict[Head, float],
    theme: Theme,
) -> list[tuple[str, list[int], dict[str, Any]]]:
    """(name, indices, marker) of each trace: one a category, or one in all with a colour scale."""
    if color in ("cluster", "head"):
        found = []
        for n, value in enumerate(sorted(set(points[color]))):
            members = [i for i, v in enumerate(points[color]) if v == value]
            label = f"{value} {names.get(value, '')}" if color == "cluster" else f"head {value}"
            found.append((label, members, {"color": COLORS[n % len(COLORS)]}))
        return found
    values = points["layer"] if color == "layer" else [importance.get(h) for h in heads]
    bar = {"thickness": 8, "outlinewidth": 0, "tickfont": {"color": theme.muted, "size": 11}}
    scale = theme.scale()[1:]  # the palest step is the panel's own tone
    scale = [[i / (len(scale) - 1), c] for i, (_, c) in enumerate(scale)]
    return [(color, list(range(len(heads))), {"color": values, "colorscale": scale, "colorbar": bar})]
