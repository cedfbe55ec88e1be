"""The Dash app: one router, and a JSON twin of every page.

A page is drawn from its URL alone. Controls write to the URL (in the browser, `assets/attlas.js`), and the router draws
the page again; so every state can be shared as a link.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flask
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, html, no_update

from attlas.dashboard.answer import MissingRunError, answer, settled
from attlas.dashboard.components import empty
from attlas.dashboard.find import find
from attlas.dashboard.guard import guard
from attlas.dashboard.layout import cut, footer, frame, gone, shell
from attlas.dashboard.notes import serve_groups, write_notes
from attlas.dashboard.page import Page, link, number, parse, title
from attlas.dashboard.pages import pages as all_pages
from attlas.dashboard.pages.features.explain import act_on_labels
from attlas.dashboard.pages.features.steer import keep_steering
from attlas.dashboard.pages.features.table import grid_rows
from attlas.dashboard.pages.runs.acts import act_on_runs
from attlas.dashboard.pictures import pattern_picture
from attlas.dashboard.preview import PreviewedDash
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.take import serve_tables
from attlas.dashboard.theme import theme
from attlas.errors import AttlasError

COOKIE = "attlas-theme"
SLOW_MS = 4000  # how often a page that follows a training is drawn again
MOST_WAIT_S = 120.0  # of ?wait= in the JSON twin
_WAITERS = threading.BoundedSemaphore(8)
_INDEX = """<!DOCTYPE html>
<html lang="en">
  <head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}</head>
  <body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""  # Dash's own, with the language that screen readers need
_FIGURES = {"type": "figure", "name": ALL, "pick": ALL, "brush": ALL, "path": ALL}


def create_app(
    workspace: str | Path, models: Mapping[str, str] | None = None, host: str = "127.0.0.1", token: str | None = None
) -> Dash:
    """Build the app over a workspace folder (which may not exist yet).

    Args:
        models: name → folder, of models to work on that are neither embedded nor fetched.
        host: address it will listen on; on a local one, requests under another name are refused.
        token: what every request has to bring (see `guard`).

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
        compress=True,
        index_string=_INDEX,
    )
    app.previews, app.reader = {page.path: page for page in pages}, reader
    app.server.config.update(COMPRESS_ALGORITHM=["zstd", "br", "gzip"], COMPRESS_BR_LEVEL=4, COMPRESS_LEVEL=4)
    app.server.extensions["attlas.jobs"] = reader.jobs
    app.layout = lambda: shell(theme(_cookie()))
    _route(app, reader, pages)
    _act(app, reader)
    act_on_runs(app, reader)
    write_notes(app, reader)
    act_on_labels(app, reader)
    keep_steering(app, reader)
    _serve_json(app.server, reader, pages)
    _keep_assets(app.server)
    serve_tables(app.server, reader)
    serve_groups(app.server, reader)
    guard(app.server, host, token)
    return app


def _cookie() -> str | None:
    return flask.request.cookies.get(COOKIE) if flask.has_request_context() else None


def _route(app: Dash, reader: WorkspaceReader, pages: tuple[Page, ...]) -> None:
    by_path = {page.path: page for page in pages}

    @app.callback(
        Output("drawn", "data"),
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
            drawn = {"frame": frame(reader, pages, path, params), "page": lost, "title": "No such page · Attlas"}
            return drawn, True, SLOW_MS, "No such page", None
        try:
            data = answer(page, reader, params)
            now = _fingerprint(path, search, mode, data)
            if ctx.triggered_id == "tick" and now == seen:  # a page that waits is left alone until there is news
                return no_update, no_update, no_update, no_update, no_update
            body = page.view(data, theme(mode))
        except MissingRunError as error:
            data, now = {}, None
            body = gone(page, params, str(error), error.parameters)
        except Exception as error:
            data, now = {}, None
            body = empty("This page cannot be shown", _told(error), "attlas doctor")
        live = data.get("live")
        # Within a page, what differs is changed in place (assets/draw.js); another page is made anew.
        embedded = params.get("embed") == "true"  # in another page's frame: without what is around the page
        end = None if embedded else footer(reader, path, search or "", data)
        shown = html.Div([cut(data), body, end], className="content", key=f"{path}{mode}")
        drawn = {"page": shown, "title": f"{title(page, params)} · Attlas"}
        if ctx.triggered_id != "tick":
            drawn["frame"] = None if embedded else frame(reader, pages, path, params)
        return drawn, not live, SLOW_MS if live is True or not live else int(live), page.title, now

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
    app.clientside_callback(ClientsideFunction(local, "show"), Input("drawn", "data"))
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


def _serve_json(server: flask.Flask, reader: WorkspaceReader, pages: tuple[Page, ...]) -> None:
    by_name = {page.path.strip("/") or "overview": page for page in pages}

    @server.get("/api")
    @server.get("/api/")
    def index() -> flask.Response:
        return flask.jsonify({"pages": [f"/api/{name}" for name in by_name]})

    @server.get("/find")
    def found() -> flask.Response:
        """What the palette lists."""
        asked = flask.request.args
        try:
            return _json({"found": find(reader, pages, asked.get("q", "")[:200], asked.get("model") or None)})
        except AttlasError as error:
            return _json({"found": [], "error": str(error)}, 400)

    @server.get("/alive")
    def alive() -> flask.Response:
        """What a page asks while it waits for a server that went away."""
        return _json({"alive": True})

    @server.get("/api/<name>")
    def page_json(name: str) -> flask.Response:
        page = by_name.get(name)
        if page is None:
            return _json({"error": f"no page '{name}'", "pages": sorted(by_name)}, 404)
        params = flask.request.args.to_dict()
        until = time.monotonic() + min(MOST_WAIT_S, max(0.0, number(params, "wait") or 0.0))
        try:
            data = answer(page, reader, params)
            with _waiting(until) as waits:
                return _json(settled(page, reader, params, data, until) if waits else data)
        except MissingRunError as error:
            return _json({"error": str(error)}, 404)
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


def _keep_assets(server: flask.Flask) -> None:
    """Browsers keep our scripts and styles: their addresses name the time of their last change."""

    @server.after_request
    def keep(response: flask.Response) -> flask.Response:
        if flask.request.path.startswith("/assets/") and "m" in flask.request.args and response.status_code == 200:
            response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
        return response


@contextmanager
def _waiting(until: float) -> Iterator[bool]:
    """Whether this request may wait: only so many at once, so that threads are left for pages."""
    mine = until > time.monotonic() and _WAITERS.acquire(blocking=False)
    try:
        yield mine
    finally:
        if mine:
            _WAITERS.release()


def _json(value: Any, status: int = 200) -> flask.Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return flask.Response(text + "\n", status=status, mimetype="application/json")
