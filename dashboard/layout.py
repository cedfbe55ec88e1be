"""The shell around every page: name, navigation, model picker, theme switch."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from attlas.dashboard.components import attributes, picker
from attlas.dashboard.page import Page, Params, link
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme


def shell(theme: Theme) -> Any:
    """The static frame; `frame` and `page` are filled by the router."""
    return dmc.MantineProvider(
        html.Div(
            [
                dcc.Location(id="url", refresh="callback-nav"),
                dcc.Store(id="theme", data=theme.name),
                dcc.Store(id="seen"),
                dcc.Store(id="acted"),
                html.A("Skip to content", href="#page", className="skip"),
                html.Div(id="frame"),
                html.Main(id="page", tabIndex=-1),
                dcc.Interval(id="tick", interval=4000, disabled=True),
                html.Div(id="announce", className="sr", role="status", **attributes({"aria-live": "polite"})),
            ],
            className="app",
        ),
        id="mantine",
        forceColorScheme=theme.name,
        theme={"fontFamily": "Inter Variable, system-ui, sans-serif", "primaryColor": "cyan"},
    )


def frame(reader: WorkspaceReader, pages: tuple[Page, ...], path: str, params: Params) -> Any:
    """Navigation bar for a place in the atlas; links keep the chosen model."""
    models = reader.models()
    model = params.get("model")
    shown = {"/feature": "/features", "/vit-head": "/vit", "/head": "/heads"}.get(path, path)
    items = [
        dcc.Link(
            page.title,
            href=link(page.path, model=model),
            className="nav-link" + (" here" if page.path == shown else ""),
        )
        for page in pages
        if page.nav
    ]
    options = [("", "All models"), *[(name, name) for name in models]]
    return html.Div(
        [
            html.Div(
                [
                    dcc.Link([html.Span(className="mark"), "Attlas"], href=link("/", model=model), className="brand"),
                    html.Div(
                        [
                            picker("model", "", options, model if model in models else "", "") if models else None,
                            html.Button(
                                html.Span(className="theme-icon"),
                                id="toggle",
                                className="icon-button",
                                title="Light or dark",
                                **attributes({"aria-label": "Switch between light and dark"}),
                            ),
                        ],
                        className="bar-right",
                    ),
                ],
                className="bar",
            ),
            html.Nav(items, className="nav", **attributes({"aria-label": "Pages"})),
        ],
        className="frame",
    )


def footer(reader: WorkspaceReader, path: str, search: str) -> html.Footer:
    """Where the numbers come from, and the same page as JSON."""
    return html.Footer(
        [
            html.Span(["Workspace ", html.Code(str(reader.path))]),
            html.A("This page as JSON", href=f"/api{path if path != '/' else '/overview'}{search}", target="_blank"),
        ]
    )
