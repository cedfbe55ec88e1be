"""Large tables as one ag-grid: thousands of cells as separate components would block the browser for minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_ag_grid as dag
from dash import html

from attlas.data.glossary import tooltip

# The page's colours, from its style sheet, so that a grid follows the light and the dark theme.
THEME = (
    "themeQuartz.withParams({backgroundColor: 'var(--surface)', foregroundColor: 'var(--ink)', "
    "headerBackgroundColor: 'var(--sunk)', headerTextColor: 'var(--muted)', borderColor: 'var(--line)', "
    "accentColor: 'var(--accent)', rowHoverColor: 'var(--sunk)', browserColorScheme: 'inherit', "
    "fontFamily: 'inherit', fontSize: 13.5, wrapperBorderRadius: 10})"
)


def grid(
    rows: Sequence[dict[str, Any]], names: dict[str, str], *, columns: Mapping[str, dict[str, Any]] | None = None
) -> html.Div:
    """Rows of plain values, sortable and filterable in the browser.

    Args:
        names: key → heading.
        columns: key → what ag-grid is told of its column besides, such as a cellRenderer (see assets/).
    """
    definitions = []
    for key, title in names.items():
        values = [row.get(key) for row in rows]
        numeric = any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        definition: dict[str, Any] = {
            "field": key,
            "headerName": title,
            "filter": not numeric,
            "headerTooltip": tooltip(key),
        }
        if numeric:
            definition |= {"type": "rightAligned", "valueFormatter": {"function": "sig(params.value)"}}
        else:
            definition |= {"flex": 1, "minWidth": 118}  # text takes what room numbers leave
        definitions.append(definition | dict((columns or {}).get(key, {})))
    return html.Div(
        dag.AgGrid(
            rowData=[{key: row.get(key) for key in names} for row in rows],
            columnDefs=definitions,
            defaultColDef={"resizable": True, "sortable": True, "width": 118, "suppressMovable": True},
            dashGridOptions={"rowHeight": 30, "headerHeight": 34, "theme": {"function": THEME}},
            style={"height": f"{min(380, 40 + 30 * len(rows))}px", "width": "100%"},
        ),
        className="grid-box",
    )
