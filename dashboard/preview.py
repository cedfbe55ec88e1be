"""What a page shows before Dash's scripts are there: its heading and first content, in the document itself.

Dash needs seconds of a slow processor for its scripts and the first drawing; a page with a `preview` can be read, and its
sequences walked, meanwhile. `assets/gallery.js` moves what was drawn into the page as soon as it has come.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

import flask
from dash import Dash

from attlas.dashboard.page import Page
from attlas.dashboard.reader import WorkspaceReader
from attlas.errors import AttlasError

_SCRIPT = re.compile(r"<script[^>]*></script>")


class PreviewedDash(Dash):
    """Dash whose document begins with the preview of the page asked for; Attlas's scripts come before Dash's own."""

    previews: Mapping[str, Page]
    reader: WorkspaceReader

    def interpolate_index(self, **parts: Any) -> str:  # type: ignore[override]
        """The document of the page in the request."""
        scripts = _SCRIPT.findall(parts.get("scripts", ""))
        parts["scripts"] = "\n".join(sorted(scripts, key=lambda tag: "/assets/" not in tag))  # the rest keeps its order
        if flask.has_request_context():
            parts["app_entry"] = self._preview() + parts["app_entry"]
        return super().interpolate_index(**parts)

    def _preview(self) -> str:
        page = self.previews.get(flask.request.path)
        try:
            body = page.preview(self.reader, flask.request.args.to_dict()) if page and page.preview else ""
        except AttlasError:  # the page itself says so
            body = ""
        return f'<div id="preview"><main class="content">{body}</main></div>' if body else ""


def heading_html(title: str, lead: str) -> str:
    """The heading of `components.heading`, as HTML."""
    return f'<header class="heading"><div><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></div></header>'


def card_html(title: str, body: str, note: str = "") -> str:
    """The card of `components.card`, as HTML; `body` is HTML."""
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card span-2"><div class="card-head"><h2>{escape(title)}</h2></div>{told}{body}</section>'
