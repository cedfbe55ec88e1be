"""Every head of two runs side by side, by one number: two checkpoints, two models of one shape, two corpora."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from dash import html

from attlas.dashboard.components import card, graph, picker, table
from attlas.dashboard.page import Data
from attlas.dashboard.pages.heads.numbers import Heads, all_numbers
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme, style
from attlas.data.workspace import Run

MOST_CHANGED = 12


def data(reader: WorkspaceReader, run: Run | None, heads: Heads, metric: str, asked: str | None) -> Data:
    """The runs that can stand beside this one, and the chosen one's values of the number."""
    others = [other for other in reader.runs("heads") if run is None or other.id != run.id]
    listed = [{"run": other.id, "title": f"{other.model.name}, {other.id}"} for other in others]
    chosen = next((other for other in others if other.id == asked), None)
    found: Data = {"runs": listed, "asked": chosen.id if chosen else "", "rows": [], "name": ""}
    if chosen is None:
        return found
    there = all_numbers(reader, chosen.model.name, chosen).rows
    rows: list[Row] = []
    for place in sorted({*heads.rows, *there}):
        one, other = (rows_.get(place, {}).get(metric) for rows_ in (heads.rows, there))
        difference = None if one is None or other is None else one - other
        rows.append({"layer": place[0], "head": place[1], "one": one, "other": other, "difference": difference})
    return found | {"rows": rows, "name": chosen.model.name}


def view(data: Data, title: str, theme: Theme) -> Any:
    """The choice of a run; both maps with one scale, their difference, and the heads that differ most."""
    found = data["beside"]
    if not found["runs"]:
        return None
    options = [("", "no other"), *[(row["run"], row["title"]) for row in found["runs"]]]
    choose = picker("beside", "Another run", options, found["asked"], "", wide=True)
    rows = found["rows"]
    if not rows:
        return card("Beside another run", choose, note="Every head of two checkpoints, models or corpora.", span=2)
    names = {"one": f"{data['model']} (here)", "other": f"{found['name']} (other run)"}
    there = [row[which] for row in rows for which in names if row[which] is not None]
    scale = {"zmin": min(there, default=0.0), "zmax": max(there, default=1.0)}
    maps = [_map(rows, which, name, theme, scale) for which, name in names.items()]
    maps.append(_map(rows, "difference", "difference, here − other", theme, {"zmid": 0}))
    changed = sorted((r for r in rows if r["difference"] is not None), key=lambda r: -abs(r["difference"]))
    told = [{"place": f"{r['layer']}.{r['head']}", **r} for r in changed[:MOST_CHANGED]]
    columns = {"place": "head", **names, "difference": "difference"}
    empty = None if told else html.P("The other run has no such number.", className="note")
    return card(
        f"{title}, beside another run",
        html.Div([html.Div([html.H3(name), drawn]) for name, drawn in maps], className="beside"),
        table(told, columns, summary="Heads that differ most", open_=True),
        empty,
        controls=choose,
        note="The same number in both runs, on one scale of colours.",
        span=2,
    )


def _map(rows: list[Row], which: str, name: str, theme: Theme, scale: Row) -> tuple[str, Any]:
    layers, heads = sorted({r["layer"] for r in rows}), sorted({r["head"] for r in rows})
    cells = {(r["layer"], r["head"]): r[which] for r in rows}
    figure = go.Figure(
        go.Heatmap(
            z=[[cells.get((layer, head)) for head in heads] for layer in layers],
            x=heads,
            y=layers,
            colorscale=theme.scale(which == "difference"),
            hovertemplate="head %{y}.%{x}<br><b>%{z:.4g}</b><extra></extra>",
            colorbar={"thickness": 8, "outlinewidth": 0, "tickfont": {"color": theme.muted, "size": 11}},
            **scale,
        )
    )
    style(figure, theme, max(190, min(480, 70 + 30 * len(layers))), margin={"l": 36, "r": 4, "t": 4, "b": 36})
    figure.update_xaxes(title_text="head", showgrid=False, dtick=max(1, len(heads) // 8), zeroline=False)
    figure.update_yaxes(title_text="layer", showgrid=False, dtick=max(1, len(layers) // 8), autorange="reversed")
    return name, graph(figure, f"layers by heads, {name}")
