"""The finder's scatter and map of heads; both show the same heads as chosen."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
from dash import html

from attlas.dashboard.components.figures import graph
from attlas.dashboard.page import Data
from attlas.dashboard.theme import Theme, style

_FAINT = 0.15
_SMALL, _LARGE = 6.0, 22.0  # diameters of points, px


def _bar(theme: Theme, title: str = "") -> dict[str, Any]:
    told = {"text": title, "side": "right", "font": {"size": 11, "color": theme.muted}}
    return {"thickness": 8, "outlinewidth": 0, "tickfont": {"color": theme.muted, "size": 11}, "title": told}


def _sizes(values: list[float | None]) -> list[float]:
    """Diameters: area by the value's place between the least and the largest."""
    there = [v for v in values if v is not None]
    low, high = (min(there), max(there)) if there else (0.0, 0.0)
    span = (high - low) or 1.0
    return [_SMALL if v is None else math.sqrt(_SMALL**2 + (_LARGE**2 - _SMALL**2) * (v - low) / span) for v in values]


def scatter(data: Data, names: dict[str, str], theme: Theme) -> html.Div:
    """A point a head; a click opens it, a box sets `heads`."""
    rows = data["rows"]
    top, lit = {tuple(p) for p in data["top"]}, {tuple(p) for p in data["lit"]}
    places = [(row["layer"], row["head"]) for row in rows]
    sizes = _sizes([row.get(data["size"]) for row in rows]) if data["size"] else [9.0] * len(rows)
    few = len(rows) <= 48
    color = [math.nan if row.get(data["color"]) is None else row[data["color"]] for row in rows]
    figure = go.Figure(
        go.Scatter(
            x=[row.get(data["x"]) for row in rows],
            y=[row.get(data["y"]) for row in rows],
            mode="markers+text" if few else "markers",
            text=[f"{a}.{b}" if few or (a, b) in top else "" for a, b in places],
            hovertext=[f"head {a}.{b}" for a, b in places],
            textposition="top center",
            textfont={"size": 10, "color": theme.muted},
            customdata=[
                {"layer": a, "head": b, "model": data["model"], "heads": f"{a}.{b}", "run": None} for a, b in places
            ],
            marker={
                "size": sizes,
                "color": color,
                "colorscale": theme.scale(),
                "colorbar": _bar(theme, names["color"]),
                "line": {
                    "color": [theme.second if p in top else theme.ink for p in places],
                    "width": [2.2 if p in top else 0.6 for p in places],
                },
                "opacity": [1 if not lit or p in lit else _FAINT for p in places],
            },
            hovertemplate="<b>%{hovertext}</b><br>%{x:.4g} across, %{y:.4g} up<br>%{marker.color:.4g} colour<extra></extra>",
        )
    )
    style(figure, theme, 430, showlegend=False, dragmode="select")
    figure.update_xaxes(title_text=names["x"])
    figure.update_yaxes(title_text=names["y"])
    return graph(figure, "scatter of heads", pick="*", brush="heads", path="/head")


def layer_map(data: Data, title: str, theme: Theme) -> html.Div:
    """Layers × heads by the number chosen; a click opens a head."""
    rows = data["rows"]
    layers, heads = sorted({r["layer"] for r in rows}), sorted({r["head"] for r in rows})
    cells = {(r["layer"], r["head"]): r.get(data["metric"]) for r in rows}
    top, lit = [tuple(p) for p in data["top"]], [tuple(p) for p in data["lit"]]
    figure = go.Figure(
        go.Heatmap(
            z=[[cells.get((layer, head)) for head in heads] for layer in layers],
            x=heads,
            y=layers,
            xgap=2 if len(heads) < 33 else 1,
            ygap=2 if len(layers) < 33 else 1,
            colorscale=theme.scale(),
            hovertemplate=f"head %{{y}}.%{{x}}<br><b>%{{z:.4g}}</b><extra>{title}</extra>",
            colorbar=_bar(theme),
        )
    )
    for at, line in ((lit, {"color": theme.ink, "width": 1.5}), (top, {"color": theme.second, "width": 2})):
        figure.add_scatter(  # one trace: a shape a head would be slow for hundreds
            x=[head for _, head in at],
            y=[layer for layer, _ in at],
            mode="markers",
            marker={
                "symbol": "square-open",
                "size": 14 if len(heads) < 20 else 8,
                "line": line,
                "color": line["color"],
            },
            hoverinfo="skip",
        )
    style(figure, theme, max(220, min(620, 70 + 40 * len(layers))), showlegend=False)
    figure.update_xaxes(title_text="head", showgrid=False, dtick=max(1, len(heads) // 16), zeroline=False)
    figure.update_yaxes(title_text="layer", showgrid=False, dtick=max(1, len(layers) // 16), autorange="reversed")
    return graph(figure, "layers by heads", pick="head,layer", path="/head")
