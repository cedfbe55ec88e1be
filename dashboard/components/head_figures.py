"""Figures of one head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from dash import html
from plotly.subplots import make_subplots

from attlas.dashboard.components import attributes, bars, card, graph, short
from attlas.dashboard.components.tokens import lit, visible
from attlas.dashboard.reader import Row
from attlas.dashboard.theme import Theme, style

_LINES = ("solid", "dash", "dot")


def attention(tokens: Sequence[str], pattern: Sequence[Sequence[float]], to: int, theme: Theme) -> Any:
    """The map: rows attend to columns. A click sets the URL parameter `to`."""
    names = [f"{i}: {visible(token)}" for i, token in enumerate(tokens)]
    words = [visible(token) for token in tokens]
    seen = [[w if j <= i else None for j, w in enumerate(row)] for i, row in enumerate(pattern)]
    figure = go.Figure(
        go.Heatmap(
            z=seen,
            x=names,
            y=names,
            zmin=0,
            zmax=1,
            colorscale=theme.scale(),
            hoverongaps=False,
            hovertemplate="from <b>%{y}</b><br>to <b>%{x}</b><br>weight <b>%{z:.4f}</b><extra></extra>",
            colorbar={"thickness": 8, "outlinewidth": 0, "tickfont": {"color": theme.muted, "size": 11}, "len": 1},
        )
    )
    side = max(320, min(720, 90 + 15 * len(tokens)))
    style(figure, theme, side, margin={"l": 70, "r": 8, "t": 8, "b": 70})
    dense = {"tickmode": "array", "tickvals": names, "ticktext": words, "showgrid": False, "type": "category"}
    figure.update_xaxes(**dense, tickangle=-90, constrain="domain")
    figure.update_yaxes(**dense, autorange="reversed", scaleanchor="x", constrain="domain")
    figure.add_hline(y=to, line={"color": theme.second, "width": 1})
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(tickfont={"size": 9 if len(tokens) > 40 else 11})
    return graph(figure, "attention map: rows attend to columns", pick=",to")


def tinted(tokens: Sequence[str], weights: Sequence[float], to: int) -> Any:
    """A row of the map as text; the tint is the weight, the underlined token the one that attends."""
    scale = max(weights) or 1.0
    spans = []
    for i, (token, weight) in enumerate(zip(tokens[: to + 1], weights, strict=False)):
        told = attributes({"data-tip": short(weight), "aria-label": f"{token}, weight {short(weight)}"})
        spans.append(lit(token, weight / scale, " peak" if i == to else "", **told))
    return html.P(spans, className="tokens")


def row_entropy(tokens: Sequence[str], entropy: Sequence[float], theme: Theme) -> Any:
    """Entropy by position, with log n behind it."""
    at = list(range(len(tokens)))
    words = [visible(token) for token in tokens]
    figure = go.Figure()
    even = [math.log(i + 1) for i in at]
    figure.add_scatter(
        x=at, y=even, mode="lines", line={"color": theme.muted, "width": 1}, opacity=0.5, hoverinfo="skip"
    )
    figure.add_scatter(
        x=at,
        y=list(entropy),
        text=words,
        mode="lines+markers",
        line={"color": theme.accent, "width": 1.5},
        marker={"size": 4},
        hovertemplate="%{x}: %{text}<br><b>%{y:.3f}</b> nats<extra></extra>",
    )
    style(figure, theme, 260, showlegend=False)
    figure.update_xaxes(title_text="position", showgrid=False)
    figure.update_yaxes(title_text="nats", rangemode="tozero")
    return graph(figure, "entropy of each row of the map")


def quantiles(beside: Sequence[Row], head: int, theme: Theme) -> Any:
    """Quantiles of entropy as boxes, one a head of the layer."""
    figure = go.Figure()
    for row in (row for row in beside if row.get("q50") is not None):
        mine = row["head"] == head
        figure.add_box(
            x=[str(row["head"])],
            lowerfence=[row["q05"]],
            q1=[row["q25"]],
            median=[row["q50"]],
            q3=[row["q75"]],
            upperfence=[row["q95"]],
            mean=[row["entropy"]],
            name=f"head {row['head']}",
            line={"color": theme.accent if mine else theme.muted, "width": 2 if mine else 1},
            fillcolor="rgba(0,0,0,0)",
        )
    style(figure, theme, 260, showlegend=False)
    figure.update_xaxes(title_text="head", type="category", showgrid=False)
    figure.update_yaxes(title_text="nats", rangemode="tozero")
    return graph(figure, "quantiles of entropy of this layer's heads")


def _of(masses: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in masses if row["kind"] == kind]


def distance_card(masses: Sequence[Row], theme: Theme) -> Any:
    """How far back the mass lies."""
    rows = [
        {"distance": "itself" if row["at"] == 1 else f"{row['at'] // 2}–{row['at'] - 1}", "mass": row["mass"]}
        for row in _of(masses, "distance")
    ]
    for row in rows:
        low, _, high = row["distance"].partition("–")
        row["distance"] = low if low == high else row["distance"]
    if not rows:
        return None
    figure = bars(rows, "distance", "mass", theme, x_title="tokens back", y_title="share of attention", height=260)
    return card("How far it looks", figure, note="Mean share of a query's attention by distance.")


def top_k_card(masses: Sequence[Row], theme: Theme) -> Any:
    """How few keys hold the mass, and how much lies in windows."""
    rows = [{"keys": f"top {row['at']}", "mass": row["mass"]} for row in _of(masses, "top_k")]
    rows += [{"keys": f"last {row['at']}", "mass": row["mass"]} for row in _of(masses, "window")]
    if not rows:
        return None
    figure = bars(rows, "keys", "mass", theme, x_title="keys", y_title="share of attention", height=260)
    note = "Mean share on a query's largest weights, and on the last tokens (its own among them)."
    return card("How few keys hold it", figure, note=note)


def received_card(received: Sequence[Row], theme: Theme) -> Any:
    """Mass by key position."""
    if not received:
        return None
    figure = go.Figure()
    figure.add_scatter(
        x=[row["position"] for row in received],
        y=[row["per_query"] for row in received],
        mode="lines",
        line={"color": theme.accent, "width": 1.5},
        hovertemplate="position %{x}<br><b>%{y:.4f}</b><extra></extra>",
    )
    style(figure, theme, 260, showlegend=False)
    figure.update_xaxes(title_text="key position", showgrid=False)
    figure.update_yaxes(title_text="weight per query", type="log", dtick=1)  # decades; "5", "2" between say nothing
    return card(
        "What it receives",
        graph(figure, "attention received by key position"),
        note="Column mass: mean weight of a key position, over the queries that can see it.",
    )


def history(rows: Sequence[Row], scores: Sequence[str], theme: Theme) -> Any:
    """Scores and entropy over checkpoints; a band where a score passes its null for good."""
    steps = [row["step"] for row in rows]
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    there = [name for name in scores if any(row.get(name) is not None for row in rows)]
    for name, dash in zip(there, _LINES, strict=False):
        line = {"color": theme.accent, "dash": dash, "width": 2}
        y = [row[name] for row in rows]
        figure.add_scatter(x=steps, y=y, name=name.replace("_", " "), mode="lines+markers", line=line)
        null = [row.get(f"{name}_null") for row in rows]
        if any(value is not None for value in null):
            thin = {"color": theme.muted, "dash": dash, "width": 1}
            figure.add_scatter(x=steps, y=null, name=f"{name.replace('_', ' ')}, null", mode="lines", line=thin)
    for name, dash in (("entropy", "solid"), ("lower_bound", "dot")):
        line = {"color": theme.second, "dash": dash, "width": 1.5}
        y = [row[name] for row in rows]
        figure.add_scatter(x=steps, y=y, name=name.replace("_", " "), mode="lines+markers", line=line, secondary_y=True)
    style(figure, theme, 320)
    for name in there:
        born = birth(rows, name)
        if born and name != "duplicate_token":
            figure.add_vrect(
                x0=born[0],
                x1=born[1],
                fillcolor=theme.second,
                opacity=0.12,
                line_width=0,
                annotation_text=f"{name.replace('_', ' ')} born",
                annotation_font={"size": 11, "color": theme.muted},
            )
    figure.update_xaxes(title_text="step", showgrid=False)
    figure.update_yaxes(title_text="share of attention", rangemode="tozero", secondary_y=False)
    figure.update_yaxes(title_text="nats", rangemode="tozero", showgrid=False, secondary_y=True)
    return graph(figure, "scores and entropy of this head over training")


def birth(rows: Sequence[Row], score: str) -> tuple[int, int] | None:
    """The steps between which a score rose past its null to stay above it, or None (a run from before nulls has none)."""
    found, before = None, 0
    for row in rows:
        value, null = row.get(score), row.get(f"{score}_null")
        above = value is not None and null is not None and value > null
        found = (found or (before, row["step"])) if above else None
        before = row["step"]
    return found
