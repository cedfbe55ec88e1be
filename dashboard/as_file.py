"""A page as one HTML file that needs no server and no network, or as a cell of a notebook.

The page's own components become plain HTML; figures stay interactive (with Plotly in the file), tables sort and filter, a
circuit's graph can be walked. What needs a server, such as buttons and boxes that run a model, is left out.
"""

from __future__ import annotations

import base64
import json
import re
import time
import zlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attlas.dashboard.answer import answer, settled
from attlas.dashboard.components import short
from attlas.dashboard.page import Page, parse, title
from attlas.dashboard.pages import pages
from attlas.dashboard.reader import WorkspaceReader, clean
from attlas.dashboard.theme import theme
from attlas.data.files import write_text_atomic
from attlas.errors import ConfigError

ASSETS = Path(__file__).parent / "assets"
SECONDS = 120.0  # for work on a model that the page needs
_FONT_FACE = re.compile(r"@font-face \{.*?\}\n", re.S)
_RENAMED = {"className": "class", "htmlFor": "for", "tabIndex": "tabindex", "colSpan": "colspan", "rowSpan": "rowspan"}
_KEPT = {"href", "src", "alt", "title", "role", "scope", "width", "height", "open", "hidden"} | _RENAMED.keys()
_SERVED = ("data-gallery", "data-projection")  # elements that a script of ours fills from a server
_VOID = {"img", "br", "hr", "input"}


def save_page(reader: WorkspaceReader, address: str, path: Path, mode: str = "light", figures: bool = True) -> int:
    """Write a page of the dashboard as one file.

    Args:
        address: as in the browser, such as "/feature?run=ID&id=746"; work on a model is waited for.
        mode: "light" or "dark".
        figures: keep figures (and 4.8 MB of Plotly in the file, if there is one); their tables stay anyway.

    Returns: bytes written.

    Raises:
        ConfigError: no such page, or its work did not end.
        WorkspaceError: a run or table of it is not here.
    """
    page, params = _page(address)
    write_text_atomic(path, page_html(reader, page, params, mode, figures))
    return path.stat().st_size


def page_html(reader: WorkspaceReader, page: Page, params: dict[str, str], mode: str, figures: bool) -> str:
    """The document of `save_page`."""
    data = settled(page, reader, params, answer(page, reader, params), time.monotonic() + SECONDS)
    job = data.get("job") or {}
    if job.get("state") in ("queued", "running", "failed", "late", "cancelled"):
        why = job.get("error") or f"it took more than {SECONDS:.0f} s"
        raise ConfigError(f"{page.path} cannot be written: {job.get('title', 'its work')} did not end ({why})")
    return document(title(page, params), still(page.view(data, theme(mode)), figures), mode)


def _page(address: str) -> tuple[Page, dict[str, str]]:
    parts = urlsplit(address if address.startswith("/") else f"/{address}")
    by_path = {page.path: page for page in pages()}
    if parts.path not in by_path:
        raise ConfigError(f"there is no page '{parts.path}'; there are {', '.join(by_path)}")
    return by_path[parts.path], parse(parts.query)


def still(component: Any, figures: bool = True) -> str:
    """Components as HTML that needs no server."""
    if component is None or isinstance(component, bool):
        return ""
    if isinstance(component, (list, tuple)):
        return "".join(still(part, figures) for part in component)
    if not hasattr(component, "to_plotly_json"):
        return escape(str(component))
    told = component.to_plotly_json()
    kind, props = told["type"], told["props"]
    if told["namespace"] == "dash_html_components":
        return _element(kind.lower(), props, figures)
    if kind == "Link":
        return _element("span", {k: v for k, v in props.items() if k in ("children", "className", "title")}, figures)
    if kind == "Graph":
        return (
            _figure(props) if figures else '<p class="note">The figure is left out; its numbers are in the table.</p>'
        )
    if kind == "AgGrid":
        return _rows(props)
    return _control(kind, props)


def _element(tag: str, props: dict[str, Any], figures: bool) -> str:
    if isinstance(props.get("id"), dict) or (tag == "button" and props.get("id")):
        return ""  # it does something on a server
    if any(props.get(name) for name in _SERVED):
        return '<p class="note">Left out here; attlas export html heads writes the sequences of heads.</p>'
    parts = []
    for name, value in props.items():
        if name == "data-circuit":
            value = _offline_circuit(value)
        if name == "style":
            value = ";".join(f"{_hyphened(key)}:{one}" for key, one in value.items())
        elif not _stays(name, value):
            continue
        if value is True:
            parts.append(_RENAMED.get(name, name))
        elif value not in (None, False):
            parts.append(f'{_RENAMED.get(name, name)}="{escape(str(value))}"')
    attributes = " ".join(["", *parts])
    if tag == "a" and "href" not in " ".join(parts):
        tag = "span"
    if tag in _VOID:
        return f"<{tag}{attributes}>"
    return f"<{tag}{attributes}>{still(props.get('children'), figures)}</{tag}>"


def _stays(name: str, value: Any) -> bool:
    if name == "href":
        return str(value).startswith(("#", "data:"))
    return name in _KEPT or name.startswith(("data-", "aria-"))


def _hyphened(name: str) -> str:
    return name if name.startswith("--") else re.sub(r"[A-Z]", lambda m: f"-{m[0].lower()}", name)


def _offline_circuit(value: str) -> str:
    told = json.loads(value)
    told |= {"offline": True, "save": "", "nodes": [{**node, "actions": []} for node in told["nodes"]]}
    return json.dumps(told, ensure_ascii=False)


def _figure(props: dict[str, Any]) -> str:
    figure = props.get("figure")
    text = (
        json.dumps(clean(figure)) if isinstance(figure, dict) else str(figure.to_json() if figure is not None else "{}")
    )
    return f'<div class="still-plot" data-plot="{escape(text)}"></div>'


def _rows(props: dict[str, Any]) -> str:
    """A grid whose rows are in the page, as a table; one that asks a server for them is left out."""
    rows = props.get("rowData")
    if rows is None:
        return '<p class="note">Rows are left out here; attlas export html features writes them.</p>'
    columns = [(c["field"], c.get("headerName", c["field"])) for c in props.get("columnDefs", ())]
    return table_html(rows, columns)


def table_html(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]], key: str = "") -> str:
    """A table that sorts by its headings and filters by words (assets/offline.page.js).

    Args:
        key: column whose values open a block of the document of that name.
    """
    head = "".join(f"<th scope='col'><button type='button'>{escape(name)}</button></th>" for _, name in columns)
    body = "".join(
        f"<tr{_opens(row.get(key)) if key else ''}>"
        + "".join(
            f"<td data-value='{escape(_plain(row.get(field)))}'>{escape(_read(row.get(field)))}</td>"
            for field, _ in columns
        )
        + "</tr>"
        for row in rows
    )
    search = "<input type='search' placeholder='words' aria-label='Words in the table'>"
    return (
        f"<div class='still-table'>{search}<div class='scroll' tabindex='0'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div></div>"
    )


def _opens(value: Any) -> str:
    return f" data-open='{escape(str(value))}' tabindex='0'"


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _read(value: Any) -> str:
    return "" if value is None else short(value)


def _control(kind: str, props: dict[str, Any]) -> str:
    """What was chosen in a control, as a line; nothing of controls without a label."""
    label, value = props.get("label"), props.get("value")
    if not label or value in (None, ""):
        return ""
    options = {str(o["value"]): o["label"] for o in props.get("data") or [] if isinstance(o, dict)}
    shown = options.get(str(value), value)
    return f'<span class="still-control">{escape(str(label))}: <b>{escape(str(shown))}</b></span>'


def packed(content: str, **names: str) -> str:
    """A script element that holds text, compressed (zlib) and in base64, until it is opened; `names` are its attributes."""
    text = base64.b64encode(zlib.compress(content.encode(), 9)).decode()
    said = " ".join(f'{name.replace("_", "-")}="{escape(value)}"' for name, value in names.items())
    return f'<script type="text/plain" {said}>{text}</script>'


def document(heading: str, body: str, mode: str, blocks: Sequence[str] = (), figures: bool | None = None) -> str:
    """One file around the components of a page as HTML.

    Args:
        figures: whether Plotly is in the file; None: where the body has a figure.
    """
    styles, scripts = ("attlas.css", "circuit.css", "gallery.css", "vit.css"), ("circuit.js", "offline.page.js")
    plotly = figures if figures is not None else "data-plot=" in body
    parts = [f'<main class="content still">{body}</main>', *blocks]
    return one_file(heading, parts, styles, scripts, mode, plotly, " 'unsafe-eval'")  # Plotly makes functions of text


def one_file(
    heading: str,
    parts: Sequence[str],
    styles: Sequence[str],
    scripts: Sequence[str],
    mode: str = "",
    plotly: bool = False,
    may: str = "",
) -> str:
    """A document that asks no network for anything.

    Args:
        parts: of its body.
        styles, scripts: names of files of `assets`, which it holds.
        mode: "light" or "dark"; "" leaves it to a script.
        plotly: whether it holds Plotly, before the other scripts.
        may: what its scripts may do besides standing in it, as a content security policy says it.
    """
    style = _FONT_FACE.sub("", "".join((ASSETS / name).read_text(encoding="utf-8") for name in styles))
    held = [(ASSETS / name).read_text(encoding="utf-8") for name in scripts]
    if plotly:
        from plotly.offline import get_plotlyjs

        held.insert(0, get_plotlyjs())
    policy = f"default-src 'none'; script-src 'unsafe-inline'{may}; style-src 'unsafe-inline'; img-src data:"
    scheme = f' data-mantine-color-scheme="{mode}"' if mode else ""
    lines = [
        "<!DOCTYPE html>",
        f'<html lang="en"{scheme}><head><meta charset="utf-8"><title>{escape(heading)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{style}</style></head>",
        "<body>",
        *parts,
        *[f"<script>{script}</script>" for script in held],
        "</body></html>\n",
    ]
    return "\n".join(lines)


class Shown:
    """A page in a cell of a notebook.

    Attributes:
        html: the whole document.
        height: of the frame, px.
    """

    def __init__(self, html: str, height: int) -> None:
        self.html, self.height = html, height

    def _repr_html_(self) -> str:
        style = f"width:100%;height:{self.height}px;border:1px solid #ddd;border-radius:8px"
        return f'<iframe srcdoc="{escape(self.html)}" style="{style}" sandbox="allow-scripts"></iframe>'


def show(
    page: str,
    workspace: str | Path = "workspace",
    *,
    height: int = 640,
    mode: str = "light",
    figures: bool = False,
    **params: Any,
) -> Shown:
    """The view of a page in a notebook, without a server.

    Args:
        page: as in the browser, such as "feature" or "/circuit?view=graph".
        workspace: its folder.
        height: of the frame, px.
        mode: "light" or "dark".
        figures: keep figures interactive, with 4.8 MB of Plotly in the notebook; their numbers are there anyway.
        params: of the page's URL, such as id=746.

    Raises:
        ConfigError: no such page, or its work on a model did not end.
        WorkspaceError: the run or a table is not here.

    Example:
        >>> import attlas
        >>> view = attlas.show("runs", folder / "workspace", kind="sae")
        >>> "No run" in view.html or "<h1>Runs</h1>" in view.html
        True
    """
    found, asked = _page(page)
    given = {name: str(value) for name, value in params.items() if value is not None}
    reader = WorkspaceReader(workspace)
    try:
        return Shown(page_html(reader, found, asked | given, mode, figures), height)
    finally:
        reader.jobs.close()


__all__ = ["Shown", "document", "one_file", "packed", "page_html", "save_page", "show", "still", "table_html"]
