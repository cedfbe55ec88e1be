"""Plotly figures in the colours and fonts of the dashboard's theme."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from dash import dcc, html

from attlas.dashboard.components.basic import attributes
from attlas.dashboard.theme import Theme, style

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def graph(
    figure: go.Figure, label: str, *, pick: str | None = None, brush: str | None = None, path: str = ""
) -> html.Div:
    """A figure on the page, with a text for screen readers.

    Args:
        pick: makes points clickable. "x,y": a click sets the URL parameters x and y to the point's place ("head,layer" in a
            heatmap of layers × heads; either may be left out, and "x,y,view=graph" also sets view). "*": each point's
            customdata is a dict of parameters to set.
        brush: a box or lasso around points sets this URL parameter to customdata[brush] of each, joined by commas; give the
            figure dragmode "select" or "lasso".
        path: page that a click goes to; this page when empty.
    """
    names: dict[str, Any] = {}
    if pick or brush:
        names["id"] = {"type": "figure", "name": label, "pick": pick or "", "brush": brush or "", "path": path}
    kind = "graph" + (" clickable" if pick else "")
    inner = dcc.Graph(figure=figure, config={"displayModeBar": False, "responsive": True}, className=kind, **names)
    return html.Div(inner, role="img", **attributes({"aria-label": label}))


def heatmap(
    rows: Sequence[dict[str, Any]],
    value: str,
    theme: Theme,
    *,
    x: str = "head",
    y: str = "layer",
    unit: str = "",
    signed: bool = False,
    height: int | None = None,
    pick: bool | str = False,
    path: str = "",
    text: str | None = None,
) -> html.Div:
    """Layers × heads (or any two whole-number columns); a cell without a row stays empty.

    Args:
        pick: a click on a cell sets the URL parameters named as the columns, or as this says (see `graph`).
        path: the page that a click goes to; this page when empty.
        text: column of words to write on the cells, and to show on hover.
    """
    xs = sorted({row[x] for row in rows})
    ys = sorted({row[y] for row in rows})
    cells = {(row[y], row[x]): row.get(value) for row in rows}
    z = [[cells.get((j, i)) for i in xs] for j in ys]
    words = {(row[y], row[x]): row.get(text) or "" for row in rows} if text else {}
    figure = go.Figure(
        go.Heatmap(
            z=z,
            text=[[words.get((j, i), "") for i in xs] for j in ys] if text else None,
            texttemplate="%{text}" if text and len(xs) <= 9 else None,
            textfont={"size": 10},
            x=[str(i) for i in xs],
            y=[str(j) for j in ys],
            xgap=2,
            ygap=2,
            colorscale=theme.scale(signed),
            zmid=0 if signed else None,
            hovertemplate=f"{y} %{{y}}, {x} %{{x}}<br><b>%{{z:.4g}}</b> {unit}"
            + ("<br>%{text}<extra></extra>" if text else "<extra></extra>"),
            colorbar={"thickness": 8, "outlinewidth": 0, "tickfont": {"color": theme.muted, "size": 11}, "len": 1},
        )
    )
    style(figure, theme, height or max(180, min(560, 70 + 34 * len(ys))), margin={"l": 44, "r": 8, "t": 8, "b": 40})
    figure.update_xaxes(title_text=x, type="category", showgrid=False)
    figure.update_yaxes(title_text=y, type="category", showgrid=False, autorange="reversed")
    return graph(
        figure, f"heatmap of {value} by {y} and {x}", pick=f"{x},{y}" if pick is True else pick or None, path=path
    )


def bars(
    rows: Sequence[dict[str, Any]],
    x: str,
    value: str,
    theme: Theme,
    *,
    group: str | None = None,
    x_title: str = "",
    y_title: str = "",
    height: int = 280,
) -> html.Div:
    """Bars, grouped by a column when given, with intervals where the rows have `low` and `high`."""
    figure = go.Figure()
    for name in dict.fromkeys(row[group] for row in rows) if group else [None]:
        part = [row for row in rows if group is None or row[group] == name]
        error = None
        if all(row.get("low") is not None and row.get("high") is not None for row in part):
            error = {
                "type": "data",
                "array": [max(0.0, row["high"] - row[value]) for row in part],
                "arrayminus": [max(0.0, row[value] - row["low"]) for row in part],
                "color": theme.muted,
                "thickness": 1,
                "width": 2,
            }
        figure.add_bar(
            x=[str(row[x]) for row in part],
            y=[row.get(value) for row in part],
            name=str(name) if name is not None else value,
            error_y=error,
            hovertemplate=f"{x} %{{x}}<br><b>%{{y:.4g}}</b><extra>{name or ''}</extra>",
        )
    style(figure, theme, height, showlegend=group is not None, barmode="group", bargap=0.25)
    figure.update_xaxes(title_text=x_title or x, type="category", showgrid=False)
    figure.update_yaxes(title_text=y_title or value)
    return graph(figure, f"bars of {value} by {x}")


def histogram(
    left: Sequence[float], width: float, count: Sequence[int], theme: Theme, *, x_title: str, y_title: str, log: bool
) -> html.Div:
    """A histogram from ready bins of equal width."""
    figure = go.Figure(
        go.Bar(
            x=[edge + width / 2 for edge in left],
            y=list(count),
            width=width * 0.94,
            marker_color=theme.accent,
            hovertemplate="%{x:.3g}<br><b>%{y}</b><extra></extra>",
        )
    )
    style(figure, theme, 180, margin={"l": 48, "r": 12, "t": 6, "b": 40}, showlegend=False)
    figure.update_xaxes(title_text=x_title, showgrid=False)
    figure.update_yaxes(title_text=y_title, type="log" if log else "linear", nticks=4)
    return graph(figure, f"histogram of {x_title}")


def _mark(theme: Theme, colour: int, dash: int) -> dict[str, str]:
    return {"color": theme.marks[colour % len(theme.marks)], "dash": _DASHES[dash % len(_DASHES)]}


def curve(
    series: Mapping[str, tuple[Sequence[Any], Sequence[Any]]],
    theme: Theme,
    *,
    x_title: str,
    y_title: str,
    height: int = 260,
    log_y: bool = False,
    strong: str | None = None,
    marks: Callable[[str], tuple[int, int]] | None = None,
) -> html.Div:
    """Lines by name; with `strong`, that one stands out and the others recede.

    With `marks`, a name's (colour, dash) by number, so that a colour and a dash can each mean something.
    """
    figure = go.Figure()
    for name, (xs, ys) in series.items():
        faint = strong is not None and name != strong
        figure.add_scatter(
            x=list(xs),
            y=list(ys),
            name=name,
            mode="lines+markers" if len(xs) < 12 else "lines",
            line={"width": 1 if faint else 2, "color": theme.muted if faint else (theme.accent if strong else None)}
            | ({} if marks is None else _mark(theme, *marks(name))),
            opacity=0.35 if faint else 1,
            showlegend=not faint and len(series) > 1,
            hovertemplate=f"{x_title} %{{x}}<br><b>%{{y:.4g}}</b><extra>{name}</extra>",
        )
    style(figure, theme, height)
    whole = {x for xs, _ in series.values() for x in xs}
    few = 1 < len(whole) <= 16 and all(isinstance(x, int) and x < 100 for x in whole)
    figure.update_xaxes(title_text=x_title, showgrid=False, dtick=1 if few else None)
    figure.update_yaxes(title_text=y_title, type="log" if log_y else "linear")
    return graph(figure, f"{y_title} by {x_title}")
