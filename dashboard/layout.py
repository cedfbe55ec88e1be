"""The shell around every page: name, navigation, model picker, theme switch."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from attlas.dashboard.components import attributes, empty, picker
from attlas.dashboard.page import Data, Page, Params, link, title
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.take import tables_of
from attlas.dashboard.theme import Theme

# A page that the navigation does not list -> the one it belongs to.
PARENTS = {
    "/feature": "/features",
    "/explain": "/features",
    "/steer": "/features",
    "/vit-head": "/vit",
    "/compare": "/runs",
    "/head": "/heads",
} | {f"/head-{name}": "/heads" for name in ("sequences", "points", "text")}


def shell(theme: Theme) -> Any:
    """The static frame; `frame` and `page` are filled by the router."""
    return dmc.MantineProvider(
        html.Div(
            [
                dcc.Location(id="url", refresh="callback-nav"),
                dcc.Store(id="theme", data=theme.name),
                dcc.Store(id="drawn"),
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
    model = params.get("model")
    seen = reader.models()
    loadable = [name for name in reader.jobs.names() if name not in seen]
    shown = PARENTS.get(path, path)
    items = [
        dcc.Link(
            page.title,
            href=link(page.path, model=model),
            className="nav-link" + (" here" if page.path == shown else ""),
        )
        for page in pages
        if page.nav
    ]
    options = [
        ("", "All models"),
        *[(name, name) for name in seen],
        *[(name, f"{name} · no runs") for name in loadable],
    ]
    if model and model not in (*seen, *loadable):
        options.append((model, f"{model} · not here"))
    return html.Header(
        [
            html.Div(
                [
                    dcc.Link([html.Span(className="mark"), "Attlas"], href=link("/", model=model), className="brand"),
                    html.Div(
                        [
                            html.Button(["Go to", html.Kbd("Ctrl K")], id="palette-open", className="find-button"),
                            picker("model", "", options, model or "", ""),
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
            _crumbs(pages, path, params, shown),
        ],
        className="frame",
    )


def _crumbs(pages: tuple[Page, ...], path: str, params: Params, shown: str) -> Any:
    """Where a page that the navigation does not list belongs."""
    by_path = {page.path: page for page in pages}
    page = by_path.get(path)
    if page is None or page.nav:
        return None
    model = params.get("model")
    steps: list[Any] = [dcc.Link("Overview", href="/")]
    steps += [dcc.Link(model, href=link("/", model=model))] if model else []
    if path == "/feature" and params.get("list"):
        steps.append(dcc.Link("Features", href=f"/features?{params['list']}"))
    elif shown != path:
        steps.append(dcc.Link(by_path[shown].title, href=link(shown, model=model)))
    steps.append(title(page, {**params, "model": ""}))
    parts = [part for i, step in enumerate(steps) for part in ((" › ", step) if i else (step,))]
    return html.Nav(parts, className="breadcrumbs", **attributes({"aria-label": "Breadcrumbs"}))


def footer(reader: WorkspaceReader, path: str, search: str, data: Data) -> html.Footer:
    """Where the numbers come from, the page as JSON, the tables it is made of as CSV."""
    tables = [
        html.Li([f"{run}: ", *(html.A(name, href=f"/table/{run}/{name}.csv", className="csv") for name in names)])
        for run, names in tables_of(reader, data).items()
    ]
    return html.Footer(
        [
            html.Span(["Workspace ", html.Code(str(reader.path))]),
            html.Details([html.Summary("Tables as CSV"), html.Ul(tables)], className="take") if tables else html.Span(),
            html.A("This page as JSON", href=f"/api{path if path != '/' else '/overview'}{search}", target="_blank"),
        ]
    )


def cut(data: Data) -> Any:
    """What a page left out of large tables; nothing where everything is shown."""
    parts = [f"{row['shown']:,} of {row['total']:,} rows of {row['table']}" for row in data.get("cut", ())]
    return html.P(f"Shown: {'; '.join(parts)}.", className="cut", role="note") if parts else html.P(hidden=True)


def gone(page: Page, params: Params, why: str, parameters: tuple[str, ...]) -> Any:
    """In place of a page whose URL names a run that is not here."""
    rest = {name: value for name, value in params.items() if name not in (*parameters, "id")}
    back = dcc.Link(f"{page.title} without it", href=link(page.path, **rest), className="button")
    return html.Div([empty("This run is not here", f"{why[0].upper()}{why[1:]}."), html.P(back, className="centre")])
