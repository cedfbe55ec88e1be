"""Buttons that delete runs and have them back."""

from __future__ import annotations

import time
from typing import Any

from dash import ALL, Dash, Input, Output, ctx, no_update

from attlas.dashboard.reader import WorkspaceReader
from attlas.data.runs.trash import bring_back, put_away
from attlas.errors import AttlasError


def act_on_runs(app: Dash, reader: WorkspaceReader) -> None:
    """A pressed button changes the manifest; the page is then drawn as it is."""

    @app.callback(
        Output("acted", "data", allow_duplicate=True),
        Output("url", "search", allow_duplicate=True),
        Output("announce", "children", allow_duplicate=True),
        Input({"type": "run", "action": ALL, "run": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def act(clicks: list[int | None]) -> tuple[Any, Any, Any]:
        button = ctx.triggered_id
        if not button or not ctx.triggered or not ctx.triggered[0]["value"]:
            return no_update, no_update, no_update
        try:
            if button["action"] == "delete":
                put_away(reader.workspace, button["run"])
                return time.time(), "", f"{button['run']} deleted; it can be had back below"
            bring_back(reader.workspace, button["run"])
            return time.time(), no_update, f"{button['run']} is back"
        except AttlasError as error:
            return no_update, no_update, str(error)
