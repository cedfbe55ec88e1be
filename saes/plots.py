"""Figures of training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attlas.data.figures import LIGHT, new_figure, new_grid

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PANELS = (
    ("explained_variance", "Explained variance"),
    ("l0", "L0 (active features a token)"),
    ("dead_fraction", "Dead features (fraction)"),
    ("mse", "Squared error (scaled)"),
)


def training_figure(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Four panels against tokens, a line an SAE."""
    import plotly.graph_objects as go

    figure = new_grid(rows=2, columns=2, subplot_titles=[title for _, title in _PANELS], vertical_spacing=0.16)
    for i, name in enumerate(dict.fromkeys(row["sae"] for row in rows)):
        mine = [row for row in rows if row["sae"] == name]
        for j, (column, _) in enumerate(_PANELS):
            line = go.Scatter(
                x=[row["tokens"] for row in mine],
                y=[row[column] for row in mine],
                name=name,
                legendgroup=name,
                showlegend=j == 0,
                line={"color": LIGHT.categories[i % len(LIGHT.categories)], "width": 1.5},
            )
            figure.add_trace(line, row=j // 2 + 1, col=j % 2 + 1)
    figure.update_xaxes(title_text="tokens", row=2)
    figure.update_layout(height=520, margin={"l": 50, "r": 20, "t": 40, "b": 45})
    return figure


def pareto_figure(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Explained variance against L0, a point an SAE; those that no other exceeds in both are joined."""
    figure = new_figure()
    for i, hook in enumerate(dict.fromkeys(row["hook"] for row in rows)):
        mine = sorted((row for row in rows if row["hook"] == hook), key=lambda row: row["l0"])
        colour = LIGHT.categories[i % len(LIGHT.categories)]
        text = [f"k={r['k']} λ={r['sparsity']:g} F={r['d_sae']} seed {r['seed']}" for r in mine]
        x, y = [r["l0"] for r in mine], [r["explained_variance"] for r in mine]
        marker = {"color": colour, "size": 8}
        figure.add_scatter(x=x, y=y, mode="markers", text=text, name=hook, marker=marker)
        front = [r for r in mine if r["on_front"]]
        figure.add_scatter(
            x=[r["l0"] for r in front],
            y=[r["explained_variance"] for r in front],
            mode="lines",
            name=f"{hook}, front",
            line={"color": colour, "dash": "dot"},
            hoverinfo="skip",
        )
    figure.update_layout(
        xaxis_title="L0 (active features a token)",
        yaxis_title="explained variance (held-out data)",
        height=440,
    )
    return figure


def evaluation_figure(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Bars with intervals: explained variance, and CE recovered where it was measured, by subject."""
    figure = new_figure()
    for i, metric in enumerate(("explained_variance", "ce_recovered", "ce_recovered_mean", "output_cosine")):
        mine = [row for row in rows if row["metric"] == metric]
        if not mine:
            continue
        figure.add_bar(
            name=mine[0]["description"],
            x=[row["subject"].replace("_", " ") for row in mine],
            y=[row["value"] for row in mine],
            marker_color=LIGHT.categories[i],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [(row["high"] or row["value"]) - row["value"] for row in mine],
                "arrayminus": [row["value"] - (row["low"] or row["value"]) for row in mine],
            },
        )
    figure.update_layout(barmode="group", height=420, legend={"orientation": "h"})
    return figure
