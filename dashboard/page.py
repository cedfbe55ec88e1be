"""What a page is: a function from the URL to data, and one from data to what is seen.

`/api<path>` returns the first as JSON; the browser shows the second. A page keeps no state of its own: whatever can be
chosen is a parameter of the URL, changed by a link or by a control made with `param`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from attlas.analyses.common.columns import Head
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme

Params = dict[str, str]
Data = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """One page of the atlas.

    Attributes:
        path: URL path, such as "/layers".
        title: name in the navigation and the window's title.
        data: what the page shows, as plain JSON values.
        view: components of that data in a theme.
        nav: whether the navigation lists it.
        preview: HTML of its first content, quick to make, shown until the page has come (`dashboard/preview.py`).
    """

    path: str
    title: str
    data: Callable[[WorkspaceReader, Params], Data]
    view: Callable[[Data, Theme], Any]
    nav: bool = True
    preview: Callable[[WorkspaceReader, Params], str] | None = None


def parse(search: str | None) -> Params:
    """Parameters of a query string; of repeated ones the last counts."""
    return dict(parse_qsl((search or "").lstrip("?")))


def link(path: str, **params: Any) -> str:
    """A URL of this app; parameters that are None are left out."""
    kept = {k: v for k, v in params.items() if v is not None and v != ""}
    return f"{path}?{urlencode(kept)}" if kept else path


def title(page: Page, params: Mapping[str, str]) -> str:
    """What the window is called: the page and what of it is chosen, such as "Feature 12 · gpt2-mini"."""
    head = f" {params['layer']}.{params['head']}" if {"layer", "head"} <= params.keys() and not page.nav else ""
    feature = f" {params['id']}" if "id" in params and not page.nav else ""
    return " · ".join(part for part in (f"{page.title}{head}{feature}", params.get("model")) if part)


def number(params: Mapping[str, str], name: str) -> float | None:
    """A finite number from the URL, or None."""
    try:
        value = float(params[name])
    except (KeyError, ValueError):
        return None
    return value if value == value and abs(value) != float("inf") else None


def integer(params: Mapping[str, str], name: str) -> int | None:
    """A whole number from the URL, or None."""
    try:
        return int(params[name])
    except (KeyError, ValueError):
        return None


def param_id(name: str, default: Any = None) -> dict[str, Any]:
    """Id of a control whose value is the URL's parameter `name` (dropped from the URL at its default)."""
    return {"type": "param", "name": name, "default": "" if default is None else str(default)}


def parse_heads(text: str | None) -> list[Head]:
    """ "0.1,2.3" → [(0, 1), (2, 3)]; what is no head is left out."""
    found = []
    for part in (text or "").split(",")[:512]:
        layer, _, head = part.partition(".")
        if layer.isdecimal() and head.isdecimal() and len(part) < 9:
            found.append((int(layer), int(head)))
    return list(dict.fromkeys(found))
