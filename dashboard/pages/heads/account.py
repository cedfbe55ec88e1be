"""Card of a head: what its attention is spent on, beside both controls, and the sequences that carry the unexplained rest."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from dash import html

from attlas.dashboard.components import card, graph, table
from attlas.dashboard.page import Data
from attlas.dashboard.pages.heads.sequences import gallery
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme, style
from attlas.data.workspace import Run

_CONTROLS = {"share_shuffled": ("shuffled data", "x-thin-open"), "share_random": ("random weights", "circle-open")}


def data(reader: WorkspaceReader, run: Run | None, layer: int, head: int) -> list[Row]:
    """The head's rules in the order they are tried."""
    return reader.rows(run, "head_account", layer=layer, head=head)


def account_card(data: Data, theme: Theme) -> Any:
    """Bars by rule, with the sequences of most unexplained mass under them."""
    rows = data["account"]
    if not rows:
        return None
    said = f"The rest, {100 * rows[-1]['share']:.0f} % of its mass, is what no rule takes; it is largest in:"
    names = {"rule": "spent on", "share": "share", "low": "low", "high": "high", "share_shuffled": "shuffled data"}
    names |= {"share_random": "random weights"}
    return card(
        "What its attention is spent on",
        _bars(rows, theme),
        table(rows, names, summary="The numbers"),
        html.P(said, className="note"),
        gallery(data, "rest", limit=3),
        note="Share of its attention mass by the first rule that takes it, 95 % interval over sequences, queries behind the "
        "first position. Marks: the same for shuffled data and for a model of random weights.",
        span=2,
    )


def _bars(rows: list[Row], theme: Theme) -> html.Div:
    figure = go.Figure()
    rules = [row["rule"] for row in rows]
    error = {"type": "data", "symmetric": False, "color": theme.muted, "thickness": 1, "width": 3}
    error["array"] = [_above(row["high"], row["share"]) for row in rows]
    error["arrayminus"] = [_above(row["share"], row["low"]) for row in rows]
    figure.add_bar(
        x=[row["share"] for row in rows],
        y=rules,
        orientation="h",
        name="this head",
        error_x=error,
        marker_color=[theme.accent] * (len(rows) - 1) + [theme.second],
        hovertemplate="%{y}<br><b>%{x:.4f}</b><extra></extra>",
    )
    for column, (name, symbol) in _CONTROLS.items():
        if any(row.get(column) is not None for row in rows):
            figure.add_scatter(
                x=[row.get(column) for row in rows],
                y=rules,
                mode="markers",
                name=name,
                marker={"symbol": symbol, "size": 9, "color": theme.ink, "line": {"width": 1.6, "color": theme.ink}},
                hovertemplate=f"%{{y}}, {name}<br><b>%{{x:.4f}}</b><extra></extra>",
            )
    style(figure, theme, 90 + 25 * len(rows), bargap=0.3)
    figure.update_xaxes(title_text="share of attention", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return graph(figure, "what its attention is spent on, by rule")


def _above(high: float | None, low: float | None) -> float:
    return max(0.0, high - low) if high is not None and low is not None else 0.0
