"""Cards, headings, pickers, small tables and the empty state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from attlas.dashboard.components.grid import grid
from attlas.dashboard.page import param_id
from attlas.data.glossary import tooltip

# Dash renders every cell as a component of its own, which takes time in the square of their number.
MOST_CELLS = 240


def attributes(values: dict[str, str]) -> dict[str, Any]:
    """HTML attributes with a dash in their name (aria-label, data-tip), to be passed as `**attributes({…})`."""
    return dict(values)


def short(value: Any, digits: int = 3) -> str:
    """A number for reading: 3 significant digits, thin thousands, an em dash for nothing."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value == 0:
            return "0"
        if abs(value) < 1e-3 or abs(value) >= 1e6:
            return f"{value:.{digits - 1}e}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return str(value)


def heading(title: str, lead: str = "", *extra: Any) -> html.Header:
    """A page's title, one sentence under it, and what stands at its right."""
    left = html.Div([html.H1(title), html.P(lead, className="lead") if lead else None])
    return html.Header([left, html.Div(list(extra), className="heading-extra")], className="heading")


def card(title: str, *children: Any, note: str = "", controls: Any = None, span: int = 1) -> html.Section:
    """A panel with a title; `note` says what is measured, in which unit."""
    head = html.Div([html.H2(title), html.Div(controls, className="controls")], className="card-head")
    parts = [head, html.P(note, className="note") if note else None, *children]
    return html.Section(parts, className=f"card span-{span}")


def columns(*children: Any) -> html.Div:
    """Panels side by side where there is room."""
    return html.Div([c for c in children if c is not None], className="columns")


def metric_cards(items: Sequence[tuple[str, Any, str]]) -> html.Div:
    """Headline numbers: (label, value, unit or remark)."""
    cells = [
        html.Div(
            [
                html.Div(label, className="metric-label"),
                html.Div(short(value), className="metric-value"),
                html.Div(remark, className="metric-note"),
            ],
            className="metric",
        )
        for label, value, remark in items
        if value is not None
    ]
    return html.Div(cells, className="metrics")


def tag(text: str, kind: str = "") -> html.Span:
    """A small label."""
    return html.Span(text, className=f"tag {kind}".strip())


def button_link(text: str, href: str | None, rel: str = "") -> Any:
    """A link that looks like a button; greyed out without a target."""
    if href is None:
        return html.Span(text, className="button off", **attributes({"aria-disabled": "true"}))
    return html.Span(dcc.Link(text, href=href, className="button"), **attributes({"data-rel": rel} if rel else {}))


def picker(
    name: str, label: str, options: Sequence[tuple[str, str]], value: str, default: str, *, wide: bool = False
) -> dmc.Select:
    """A choice kept in the URL; `wide` for long options; without a label, screen readers say its name."""
    return dmc.Select(
        id=param_id(name, default),
        data=[{"value": v, "label": text} for v, text in options],
        value=value,
        allowDeselect=False,
        size="xs",
        label=label,
        className="picker wide" if wide else "picker",
        comboboxProps={"withinPortal": True},
        **attributes({"aria-label": label or name}),
    )


def small_box(name: str, label: str, value: str) -> dmc.TextInput:
    """A few letters or a number, kept in the URL."""
    return dmc.TextInput(id=param_id(name), value=value, label=label, size="xs", debounce=500, className="small-input")


def words_box(name: str, label: str, value: str, hint: str, rest_ms: int = 400) -> dmc.TextInput:
    """Words to search by, kept in the URL once the box has rested so long."""
    more = {"placeholder": hint, "debounce": rest_ms, "className": "search"}
    return dmc.TextInput(id=param_id(name), value=value, label=label, size="xs", **more)


def empty(what: str, why: str, command: str = "") -> html.Div:
    """What a page shows before its analysis has run: what would be here, and the command that puts it here, if one does."""
    return html.Div(
        [
            html.Div(className="empty-mark", **attributes({"aria-hidden": "true"})),
            html.H2(what),
            html.P(why),
            html.Pre(html.Code(command), tabIndex=0) if command else None,
        ],
        className="empty",
    )


def table(rows: Sequence[dict[str, Any]], names: dict[str, str], *, summary: str = "Table", open_: bool = False) -> Any:
    """Rows in a foldable table: the numbers of a figure for those who cannot, or will not, hover."""
    if not rows:
        return None
    shown = {k: v for k, v in names.items() if k in rows[0]}
    plain = all(row.get(k) is None or isinstance(row[k], (int, float, str)) for row in rows for k in shown)
    if plain and len(rows) * len(shown) > MOST_CELLS:
        return html.Details([html.Summary(summary), grid(rows, shown)], open=open_, className="table")
    head = html.Tr([html.Th(title, scope="col", title=tooltip(key) or None) for key, title in shown.items()])
    body = [html.Tr([_cell(row.get(k)) for k in shown]) for row in rows[:400]]
    inner = html.Div(html.Table([html.Thead(head), html.Tbody(body)]), className="scroll", tabIndex=0)
    return html.Details([html.Summary(summary), inner], open=open_, className="table")


def _cell(value: Any) -> Any:
    """Words may wrap where a table is narrow, numbers not."""
    text = short(value) if value is None or isinstance(value, (int, float, str)) else value
    return html.Td(text, className="wrap" if isinstance(value, str) else None)
