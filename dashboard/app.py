"""The Dash app: one router, a JSON twin of every page, and the server.

A page is drawn from its URL alone. Controls write to the URL (in the browser, `assets/attlas.js`), and the router draws
the page again; so every state can be shared as a link.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flask
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, html, no_update

from attlas.dashboard.components import empty
from attlas.dashboard.layout import footer, frame, shell
from attlas.dashboard.page import Page, link, number, parse
from attlas.dashboard.pages import pages as all_pages
from attlas.dashboard.pages.features.table import grid_rows
from attlas.dashboard.pictures import pattern_picture
from attlas.dashboard.preview import PreviewedDash
from attlas.dashboard.reader import WorkspaceReader, clean
from attlas.dashboard.theme import theme
from attlas.errors import AttlasError, ConfigError

COOKIE = "attlas-theme"
LOCAL = ("127.0.0.1", "localhost", "::1")
SLOW_MS = 4000  # how often a page that follows a training is drawn again
MOST_WAIT_S = 120.0  # of ?wait= in the JSON twin
_FIGURES = {"type": "figure", "name": ALL, "pick": ALL, "brush": ALL, "path": ALL}


def create_app(workspace: str | Path, models: Mapping[str, str] | None = None, host: str = "127.0.0.1") -> Dash:
    """Build the app over a workspace folder (which may not exist yet).

    Args:
        models: name → folder, of models to work on that are neither embedded nor fetched.
        host: address it will listen on; on a local one, requests under another name are refused.

    Raises:
        WorkspaceError: the folder is there and is not a workspace.
    """
    reader = WorkspaceReader(workspace, models)
    pages = all_pages()
    app = PreviewedDash(
        "attlas.dashboard",
        assets_folder=str(Path(__file__).parent / "assets"),
        assets_ignore=r"^offline",  # of files that need no server
        title="Attlas",
        update_title="",
        serve_locally=True,
        suppress_callback_exceptions=True,
    )
    app.previews, app.reader = {page.path: page for page in pages}, reader
    app.server.extensions["attlas.jobs"] = reader.jobs
    app.layout = lambda: shell(theme(_cookie()))
    _route(app, reader, pages)
    _act(app, reader)
    _serve_json(app.server, reader, pages, host)
    return app


def _cookie() -> str | None:
    return flask.request.cookies.get(COOKIE) if flask.has_request_context() else None


def _route(app: Dash, reader: WorkspaceReader, pages: tuple[Page, ...]) -> None:
    by_path = {page.path: page for page in pages}

    @app.callback(
        Output("frame", "children"),
        Output("page", "children"),
        Output("tick", "disabled"),
        Output("tick", "interval"),
        Output("announce", "children"),
        Output("seen", "data"),
        Input("url", "pathname"),
        Input("url", "search"),
        Input("theme", "data"),
        Input("tick", "n_intervals"),
        Input("acted", "data"),
        State("seen", "data"),
        running=[(Output("tick", "max_intervals"), 0, -1)],  # a tick during a slow drawing would throw the drawing away
    )
    def draw(
        path: str | None, search: str | None, mode: str | None, _tick: int | None, _acted: Any, seen: str | None
    ) -> tuple[Any, ...]:
        path = path or "/"
        params = parse(search)
        page = by_path.get(path)
        if page is None:
            lost = html.Div(
                empty("No such page", f"Nothing is at {path}; the pages are named above."), className="content"
            )
            return frame(reader, pages, path, params), lost, True, SLOW_MS, "No such page", None
        try:
            data = clean(page.data(reader, params))
            now = _fingerprint(path, search, mode, data)
            if ctx.triggered_id == "tick" and now == seen:  # a page that waits is left alone until there is news
                return no_update, no_update, no_update, no_update, no_update, no_update
            body = page.view(data, theme(mode))
        except Exception as error:
            data, body = {}, empty("This page cannot be shown", _told(error), "attlas doctor")
            now = None
        live = data.get("live")
        # A page that shows work on a model is changed in place, so that clicks and figures stay; others are made anew.
        key = path if "job" in data else f"{path}{search}"
        shown = html.Div([body, footer(reader, path, search or "")], className="content", key=key)
        around = no_update if ctx.triggered_id == "tick" else frame(reader, pages, path, params)
        every = SLOW_MS if live is True or not live else int(live)
        return around, shown, not live, every, page.title, now

    @app.callback(
        Output("grid", "getRowsResponse"),
        Input("grid", "getRowsRequest"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def rows(request: dict[str, Any] | None, search: str | None) -> Any:
        try:
            return grid_rows(reader, parse(search), request) if request else no_update
        except AttlasError:  # the page around it says so
            return {"rowData": [], "rowCount": 0}

    local = "attlas"
    app.clientside_callback(
        ClientsideFunction(local, "params"),
        Output("url", "search"),
        Input({"type": "param", "name": ALL, "default": ALL}, "value"),
        State({"type": "param", "name": ALL, "default": ALL}, "id"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction(local, "pick"),
        Output("url", "pathname", allow_duplicate=True),
        Output("url", "search", allow_duplicate=True),
        Input(_FIGURES, "clickData"),
        Input(_FIGURES, "selectedData"),
        State(_FIGURES, "id"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction(local, "tap"),
        Output("url", "search", allow_duplicate=True),
        Input({"type": "network", "name": ALL, "pick": ALL}, "tapNodeData"),
        State({"type": "network", "name": ALL, "pick": ALL}, "id"),
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


def _told(error: Exception) -> str:
    """One line; of an error that Attlas did not expect, the log has the rest."""
    if isinstance(error, AttlasError):
        return str(error)
    logging.getLogger("attlas.dashboard").error("a page failed", exc_info=error)
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {line}; a run may have been changed by hand (the log of the server says where)"


def _fingerprint(path: str, search: str | None, mode: str | None, data: Any) -> str:
    told = json.dumps([path, search, mode, data], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _act(app: Dash, reader: WorkspaceReader) -> None:
    """Buttons that stop or repeat work on models, and uploads; everything else about a page is in its URL."""

    @app.callback(
        Output("acted", "data"),
        Input({"type": "job", "action": ALL, "key": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def act(clicks: list[int | None]) -> Any:
        button = ctx.triggered_id
        if not any(clicks) or not button:
            return no_update
        (reader.jobs.cancel if button["action"] == "cancel" else reader.jobs.forget)(button["key"])
        return time.time()

    @app.callback(
        Output("url", "search", allow_duplicate=True),
        Input({"type": "upload", "name": ALL}, "contents"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def uploaded(contents: list[str | None], search: str | None) -> Any:
        target, found = ctx.triggered_id, next((c for c in contents if c), None)
        if not found or not target:
            return no_update
        try:
            kept = reader.jobs.keep_upload(base64.b64decode(found.partition(",")[2]))
        except (AttlasError, ValueError):
            kept = "refused"  # the page says that there is no such upload
        return link("", **{**parse(search), target["name"]: kept})


def _serve_json(server: flask.Flask, reader: WorkspaceReader, pages: tuple[Page, ...], listens_on: str) -> None:
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
        params = flask.request.args.to_dict()
        until = time.monotonic() + min(MOST_WAIT_S, max(0.0, number(params, "wait") or 0.0))
        try:
            data = page.data(reader, params)
            while data.get("job") and data.get("live") and time.monotonic() < until:
                time.sleep(0.05)
                data = page.data(reader, params)
            return _json(clean(data))
        except Exception as error:
            return _json({"error": _told(error)}, 400 if isinstance(error, AttlasError) else 500)

    @server.get("/picture/<run>/<int:index>.png")
    def picture(run: str, index: int) -> flask.Response:
        try:
            found = pattern_picture(reader, run, index)
        except AttlasError as error:
            return _json({"error": str(error)}, 400)
        if found is None:
            return _json({"error": f"no map {index} in run '{run}'"}, 404)
        return flask.Response(found, mimetype="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @server.before_request
    def same_host() -> flask.Response | None:
        """A page of another site whose name was pointed at this address (DNS rebinding) gets nothing."""
        host = flask.request.host.rsplit(":", 1)[0].strip("[]")
        if listens_on in LOCAL and host not in LOCAL:
            return _json({"error": f"this server answers to 127.0.0.1 and localhost, not to {host}"}, 403)
        return None

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


def serve(
    workspace: str | Path,
    port: int = 8050,
    host: str = "127.0.0.1",
    *,
    models: Mapping[str, str] | None = None,
    ready: Any = print,
) -> None:
    """Serve a workspace until interrupted; `ready` is called with the address first; the rest as `create_app`.

    Raises:
        ConfigError: the port is taken.
        WorkspaceError: the folder is not a workspace.
    """
    from werkzeug.serving import make_server

    app = create_app(workspace, models, host)
    server = make_server(host, free_port(host, port), app.server, threaded=True)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    ready(f"http://{host}:{server.port}/")
    try:
        server.serve_forever()
    finally:
        server.server_close()
        app.server.extensions["attlas.jobs"].close()
