"""What pages that work on models show: the state of a job, text to type, files to drop, figures to click."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from attlas.dashboard.components.basic import attributes, short
from attlas.dashboard.jobs import UPLOAD_BYTES
from attlas.dashboard.page import param_id

_STATES = {
    "queued": "Waiting for the work before it",
    "running": "Running",
    "failed": "This did not work",
    "cancelled": "Stopped",
    "late": "Stopped at its time limit",
}


def job_panel(job: dict[str, Any] | None) -> Any:
    """What runs, how far it is, and a button to stop it; why it ended when it failed; empty when it is done."""
    if job is None or job["state"] == "done":
        return html.Div(className="job-place")  # a place that stays: what stands beside it is not made anew
    waiting = job["state"] in ("queued", "running")
    note = job["error"] or job["note"]
    limit = f"at most {short(job['seconds'])} s" if waiting else f"after {short(job['took'])} s"
    fraction = job["fraction"]
    bar = html.Div(
        html.I(style={"width": f"{100 * fraction:.0f}%"} if fraction is not None else {}),
        className="job-bar" + ("" if fraction is not None else " endless"),
    )
    action = "cancel" if waiting else "again"
    button = html.Button(
        "Stop" if waiting else "Run again", id={"type": "job", "action": action, "key": job["key"]}, className="button"
    )
    return html.Div(
        [
            html.Div([html.B(f"{_STATES[job['state']]}: {job['title']}"), html.Span(limit, className="note")]),
            html.P(note, className="note") if note else None,
            bar if waiting else None,
            button,
        ],
        className=f"job {job['state']}",
        role="status",
        key=f"{job['key']} {waiting}",
        **attributes({"data-job": job["state"]}),
    )


def text_box(name: str, label: str, value: str, default: str = "", *, lines: int = 2, hint: str = "") -> dmc.Textarea:
    """Text that is kept in the URL; taken over when the box is left or Ctrl-Enter is pressed."""
    return dmc.Textarea(
        id=param_id(name, default),
        value=value,
        label=label,
        placeholder=hint,
        debounce=True,
        autosize=True,
        minRows=lines,
        maxRows=8,
        className="text-box",
    )


def slider(name: str, label: str, value: float, low: float, high: float, default: float, step: float = 1) -> html.Div:
    """A number that is kept in the URL, taken over when the handle is let go."""
    control = dmc.Slider(
        id=param_id(name, default),
        value=value,
        min=low,
        max=high,
        step=step,
        updatemode="mouseup",
        className="slider",
        thumbLabel=label,
    )
    return html.Div([html.Label(label), control], className="slider-box")


def upload(name: str, text: str, accept: str = "image/*") -> dcc.Upload:
    """A place to drop a file; its id goes to the URL parameter `name`, the file stays in the server's memory."""
    return dcc.Upload(
        html.Div([text, html.Span(" Nothing leaves this machine.", className="note")]),
        id={"type": "upload", "name": name},
        accept=accept,
        multiple=False,
        max_size=UPLOAD_BYTES,
        className="upload",
    )
