"""A run in a list."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.dashboard.page import Data, link
from attlas.dashboard.run_kinds import kind_name, place_of


def run_item(run: Data, extra: Any = None) -> html.Li:
    """A run in a list: what it is, its numbers, where it leads."""
    title = run["name"] or kind_name(run["kind"])
    settings = link("/runs", run=run["id"])
    where = place_of(run["kind"], run["id"], run["model"]) or settings
    about = [run["model"], run["data"], run["created"][:16].replace("T", " ") + " UTC", f"{run['bytes'] / 1e6:.1f} MB"]
    return html.Li(
        [
            dcc.Link(run["kind"], href=settings, className="tag"),
            html.Div(
                [
                    html.Div([dcc.Link(title, href=where), html.Span(f"  {run['headline']}"), extra]),
                    html.Div(" · ".join(part for part in about if part), className="sub"),
                ]
            ),
        ]
    )
