"""The Dash app: one router, a JSON twin of every page, and the server.

A page is drawn from its URL alone. Controls write to the URL (in the browser, `assets/attlas.js`), and the router draws
the page again; so every state can be shared as a link.
"""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from typing import Any

import flask
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, html, no_update

from attlas.dashboard.components import empty
from attlas.dashboard.layout import footer, frame, shell
from attlas.dashboard.page import Page, parse
from attlas.dashboard.pages import pages as all_pages
from attlas.dashboard.pages.features import grid_rows
from attlas.dashboard.queries import Store, clean
from attlas.dashboard.theme import theme
from attlas.errors import AttlasError, ConfigError

COOKIE = "attlas-theme"


def create_app(workspace: str | Path) -> Dash:
    """Build the app over a workspace folder (which may not exist yet).

    Raises:
        WorkspaceError: the folder is there and is not a workspace.
    """
    store = Store(workspace)
    pages = all_pages()
    app = Dash(
        "attlas.dashboard",
        assets_folder=str(Path(__file__).parent / "assets"),
        title="Attlas",
        update_title="",
        serve_locally=True,
        suppress_callback_exceptions=True,
    )
    app.layout = lambda: shell(theme(_cookie()))
    _route(app, store, pages)
    _serve_json(app.server, store, pages)
    return app


def _cookie() -> str | None:
    return flask.request.cookies.get(COOKIE) if flask.has_request_context() else None


def _route(app: Dash, store: Store, pages: tuple[Page, ...]) -> None:
    by_path = {page.path: page for page in pages}

    @app.callback(
        Output("frame", "children"),
        Output("page", "children"),
        Output("tick", "disabled"),
        Output("announce", "children"),
        Input("url", "pathname"),
        Input("url", "search"),
        Input("theme", "data"),
        Input("tick", "n_intervals"),
    )
    def draw(path: str | None, search: str | None, look: str | None, _tick: int | None) -> tuple[Any, ...]:
        path = path or "/"
        params = parse(search)
        page = by_path.get(path)
        if page is None:
            lost = empty("No such page", f"Nothing is at {path}.", "attlas serve --help")
            return frame(store, pages, path, params), lost, True, "No such page"
        try:
            data = clean(page.data(store, params))
            body = page.view(data, theme(look))
        except AttlasError as error:
            data, body = {}, empty("This page cannot be shown", str(error), "attlas doctor")
        if ctx.triggered_id == "tick" and data.get("live"):
            return no_update, [body, footer(store, path, search or "")], False, no_update
        shown = html.Div([body, footer(store, path, search or "")], className="content", key=f"{path}{search}")
        return frame(store, pages, path, params), shown, not data.get("live"), page.title

    @app.callback(
        Output("grid", "getRowsResponse"),
        Input("grid", "getRowsRequest"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def rows(request: dict[str, Any] | None, search: str | None) -> Any:
        return grid_rows(store, parse(search), request) if request else no_update

    local = "attlas"
    app.clientside_callback(
        ClientsideFunction(local, "params"),
        Output("url", "search"),
        Input({"type": "param", "name": ALL, "default": ALL}, "value"),
        State({"type": "param", "name": ALL, "default": ALL}, "id"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction(local, "toggle"),
        Output("theme", "data"),
        Output("mantine", "forceColorScheme"),
        Input("toggle", "n_clicks"),
        State("theme", "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction(local, "sort"),
        Output("grid", "className"),
        Input("grid", "getRowsRequest"),
        prevent_initial_call=True,
    )


def _serve_json(server: flask.Flask, store: Store, pages: tuple[Page, ...]) -> None:
    by_name = {page.path.strip("/") or "overview": page for page in pages}

    @server.get("/api")
    @server.get("/api/")
    def index() -> flask.Response:
        return flask.jsonify({"pages": [f"/api/{name}" for name in by_name]})

    @server.get("/api/<name>")
    def page_json(name: str) -> flask.Response:
        page = by_name.get(name)
        if page is None:
            return _json({"error": f"no page '{name}'", "pages": sorted(by_name)}, 404)
        try:
            return _json(clean(page.data(store, flask.request.args.to_dict())))
        except AttlasError as error:
            return _json({"error": str(error)}, 400)

    @server.after_request
    def local_only(response: flask.Response) -> flask.Response:
        """Nothing may be loaded from, or sent to, anywhere but this server."""
        response.headers.setdefault(
            "Content-Security-Policy",
            "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'",
        )
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response


def _json(value: Any, status: int = 200) -> flask.Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return flask.Response(text + "\n", status=status, mimetype="application/json")


def free_port(host: str, port: int) -> int:
    """The port itself when it can be bound (0: any free one).

    Raises:
        ConfigError: it is taken, or not allowed.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose another --port, or 0") from error
        return int(probe.getsockname()[1])


def serve(workspace: str | Path, port: int = 8050, host: str = "127.0.0.1", *, ready: Any = print) -> None:
    """Serve a workspace until interrupted; `ready` is called with the address first.

    Raises:
        ConfigError: the port is taken.
        WorkspaceError: the folder is not a workspace.
    """
    from werkzeug.serving import make_server

    app = create_app(workspace)
    server = make_server(host, free_port(host, port), app.server, threaded=True)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    ready(f"http://{host}:{server.port}/")
    try:
        server.serve_forever()
    finally:
        server.server_close()
