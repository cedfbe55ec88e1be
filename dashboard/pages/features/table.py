"""Features: a table that pages, sorts and filters on the server, however many features there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dash_ag_grid as dag
from dash import html

from attlas.dashboard.components import card, empty, heading, histogram, metric_cards, picker, small_box, words_box
from attlas.dashboard.components.grid import THEME
from attlas.dashboard.feature_filter import WHERE, FeatureFilter, parse_ranges, tests
from attlas.dashboard.notes import labels, shown, words
from attlas.dashboard.page import Data, Page, Params, integer, link, number
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.glossary import tooltip
from attlas.data.workspace import Run
from attlas.errors import ConfigError

COLUMNS = (
    ("feature", "Feature", 100),
    ("note", "Note", 150),
    ("density", "Density", 105),
    ("max_act", "Max", 90),
    ("top_head", "Head", 84),
    ("top_head_share", "Its share", 110),
    ("family", "Family", 116),
    ("top_tokens", "Fires on", 250),
    ("promoted", "Promotes", 260),
    ("logit_z", "Top logit, sd", 118),
    ("logit_z_null", "null, 95 %", 100),
    ("logit_z_q", "q", 84),
    ("neighbour_cosine", "Neighbour", 108),
    ("neighbour_cosine_null", "null, 95 %", 100),
    ("neighbour_cosine_q", "q", 84),
    ("phrase", "Phrase", 90),
    ("phrase_null", "null, 95 %", 100),
    ("phrase_q", "q", 84),
    ("induction", "Induction", 104),
    ("induction_null", "its null", 92),
    ("induction_q", "q", 84),
    ("fall", "Causal fall", 112),
    ("local", "Local", 90),
    ("local_null", "its null", 92),
    ("local_q", "q", 84),
    ("long_range", "Long-range", 114),
    ("long_range_null", "its null", 92),
    ("long_range_q", "q", 84),
)
PLACES = [("any", "Tokens, notes"), ("fires", "It fires on"), ("promotes", "It promotes"), ("examples", "Its examples")]
NOTES = [("", "Any"), ("star", "Starred"), ("any", "With a note")]
_FAMILIES = ("family", "induction", "fall", "local", "long_range", "phrase")
_DIRECTIONS = ("logit_z", "neighbour_cosine")

_NOTE = (
    "Click a number to open the feature. A family's score is a share of attribution; its null is that of directions with "
    "the same heads and density, q corrects for the number of features. Without an excess and its check: unassigned."
)


def chosen(params: Params) -> FeatureFilter:
    """The filter a URL describes; densities are given as percentages of tokens."""
    low, high = number(params, "min"), number(params, "max")
    return FeatureFilter(
        text=params.get("q") or None,
        where=params["in"] if params.get("in") in WHERE else "any",
        ranges=_ranges(params),
        head=integer(params, "head"),
        family=params.get("family") or None,
        min_density=None if low is None else low / 100,
        max_density=None if high is None else high / 100,
    )


def _ranges(params: Params) -> tuple[tuple[str, str, float], ...]:
    """Those of the URL; none where they cannot be read, which the page says (see `problem`)."""
    try:
        return parse_ranges(params.get("ranges", ""))
    except ConfigError:
        return ()


def without_problem(reader: WorkspaceReader, run: Run, params: Params) -> tuple[Params, str]:
    """The parameters without what this run cannot be asked, and one line that says so ("" when all can)."""
    if not params.get("ranges") and params.get("in") != "examples":
        return params, ""
    try:
        wanted = parse_ranges(params.get("ranges", ""))
        tests(FeatureFilter(ranges=wanted), reader.columns(run, "features"), None)
        if params.get("in") == "examples" and params.get("q"):
            tests(chosen(params), reader.columns(run, "features"), "" if "example_words" in run.tables else None)
    except ConfigError as error:
        return {name: value for name, value in params.items() if name not in ("ranges", "in")}, str(error)
    return params, ""


def with_notes(reader: WorkspaceReader, run: Run | None, params: Params) -> tuple[FeatureFilter, dict[int, Data]]:
    """The filter of a URL, with the features whose notes it asks for; and every note of the run's features.

    Text finds labels, tags and comments too; `notes=star` or `notes=any` leaves the features with such a note.
    """
    notes, wanted = labels(reader, run), chosen(params)
    text = (wanted.text or "").lower()
    said = tuple(f for f, n in notes.items() if text and text in words(n))
    only = {"star": tuple(f for f, n in notes.items() if n["star"]), "any": tuple(notes)}.get(params.get("notes", ""))
    return replace(wanted, labelled=said, among=only), notes


def order(params: Params) -> tuple[str, bool]:
    """The column a URL sorts by, and whether from its largest value down."""
    sort = params.get("sort", "-max_act")
    return sort.lstrip("-"), sort.startswith("-")


def grid_rows(reader: WorkspaceReader, params: Params, request: dict[str, Any]) -> dict[str, Any]:
    """Answer one block request of the grid."""
    run = reader.pick("features", params.get("run"), params.get("model"))
    sort, descending = order(params)
    if request.get("sortModel"):
        sort, descending = request["sortModel"][0]["colId"], request["sortModel"][0]["sort"] == "desc"
    start, end = int(request.get("startRow") or 0), int(request.get("endRow") or 100)
    if run is not None:
        params, _ = without_problem(reader, run, params)
    wanted, notes = with_notes(reader, run, params)
    rows, total = reader.features_page(run, wanted, sort, descending, start, end - start)
    return {"rowData": [row | {"note": shown(notes.get(row["feature"]))} for row in rows], "rowCount": total}


def data(reader: WorkspaceReader, params: Params) -> Data:
    """The newest (or the named) features run: choices for the filters, a first page, the density histogram."""
    run = reader.pick("features", params.get("run"), params.get("model"))
    if run is None or reader.table_file(run, "features") is None:
        return {"run": None, "model": params.get("model")}
    asked, problem = without_problem(reader, run, params)
    wanted, notes = with_notes(reader, run, asked)
    sort, descending = order(params)
    offset = max(0, integer(params, "offset") or 0)
    limit = max(1, min(1000, integer(params, "limit") or 100))
    rows, total = reader.features_page(run, wanted, sort, descending, offset, limit)
    rows = [row | {"note": shown(notes.get(row["feature"]))} for row in rows]
    parent = reader.made_from(run, "sae")
    return {
        "run": run.id,
        "model": run.model.name,
        "hook": parent.summary.get("hook") if parent else None,
        "sae": parent.id if parent else None,
        "runs": [{"id": r.id, "model": r.model.name, "created": r.created} for r in reader.runs("features")],
        "n_tokens": run.summary.get("n_tokens"),
        "n_features": run.summary.get("n_features"),
        "dead_fraction": run.summary.get("dead_fraction"),
        "families": reader.choices(run, "family"),
        "heads": reader.choices(run, "top_head"),
        "n_notes": len(notes),
        "sort": ("-" if descending else "") + sort,
        "params": dict(params),
        "problem": problem,
        "total": total,
        "rows": rows,
        "has_text": not rows or any(row.get("top_tokens") or row.get("promoted") for row in rows),
        "density_histogram": reader.density_histogram(run, wanted),
    }


def view(data: Data, theme: Theme) -> Any:
    """Filters, the histogram, the table."""
    lead = "What each feature of a sparse autoencoder fires on, which head writes it, and what it promotes."
    if not data["run"]:
        where = f" for {data['model']}" if data.get("model") else ""
        return html.Div(
            [
                heading("Features", lead),
                empty(f"No features yet{where}", "Interpret an autoencoder:", "attlas features"),
            ]
        )
    params = data["params"]
    runs = [(r["id"], f"{r['model']} · {r['created'][:16].replace('T', ' ')}") for r in data["runs"]]
    switch = picker("run", "", runs, data["run"], runs[0][0]) if len(runs) > 1 else None
    about = f"{data['hook'] or 'features'} of {data['model']}"
    return html.Div(
        [
            heading("Features", f"{about}. {lead}", switch),
            metric_cards(
                [
                    ("Features", data["n_features"], "in the dictionary"),
                    ("Shown", data["total"], "pass the filters"),
                    ("Tokens", data["n_tokens"], "they were measured on"),
                    ("Dead", data["dead_fraction"], "fraction that never fired"),
                ]
            ),
            card(
                "How often they fire",
                _densities(data, theme),
                note="Features by the share of tokens they are active on, log10; dead ones are left out.",
            ),
            html.Div(style={"height": "18px"}),
            card("All features", _filters(data, params), _problem(data), _grid(data), note=_NOTE),
        ]
    )


def _densities(data: Data, theme: Theme) -> Any:
    bins = [b for b in data["density_histogram"] if b["bin"] is not None]
    if not bins:
        return html.P("No feature passes the filters.", className="note")
    left, counts = [b["bin"] for b in bins], [b["count"] for b in bins]
    return histogram(left, 0.25, counts, theme, x_title="log10 density", y_title="features", log=False)


def _filters(data: Data, params: Params) -> Any:
    family = params.get("family", "")
    head = params.get("head", "")
    return html.Div(
        [
            words_box("q", "Words, or #feature", params.get("q", ""), "e.g. the, #12"),
            picker("in", "Where", PLACES, params["in"] if params.get("in") in WHERE else "any", "any"),
            picker("head", "Top head", [("", "Any head"), *[(str(h), f"Head {h}") for h in data["heads"]]], head, ""),
            picker("family", "Family", [("", "Any family"), *[(f, f) for f in data["families"]]], family, ""),
            picker("notes", "Notes", NOTES, params.get("notes", ""), ""),
            small_box("min", "Min density, %", params.get("min", "")),
            small_box("max", "Max density, %", params.get("max", "")),
            words_box("ranges", "Ranges of numbers", params.get("ranges", ""), "max_act > 3, induction_q < 0.05", 600),
        ],
        className="filters",
    )


def _problem(data: Data) -> Any:
    """Why a filter was left out; a place that stays."""
    return html.P(f"Left out: {data['problem']}." if data["problem"] else "", className="note", role="status")


def _grid(data: Data) -> Any:
    number_format = {"function": "sig(params.value)"}
    definitions: list[dict[str, Any]] = []
    for field, title, width in COLUMNS:
        if field.startswith((*_DIRECTIONS, "phrase")) and data["rows"] and data["rows"][0].get(field) is None:
            continue  # runs without that null
        if not data["has_text"] and (field in ("top_tokens", "promoted") or field.startswith(_FAMILIES)):
            continue
        if field == "note" and not data["n_notes"]:
            continue
        column: dict[str, Any] = {"field": field, "headerName": title, "width": width, "sortable": field != "note"}
        column["headerTooltip"] = tooltip(field)
        if field == "feature":
            column |= {"cellRenderer": "FeatureLink", "cellRendererParams": {"run": data["run"]}, "pinned": "left"}
        elif field == "top_head_share":
            column |= {"cellRenderer": "Share"}
        elif field in ("density", "max_act") or field.startswith((*_FAMILIES[1:], *_DIRECTIONS)):
            column |= {"valueFormatter": number_format, "type": "rightAligned"}
        if data["sort"].lstrip("-") == field:
            column["sort"] = "desc" if data["sort"].startswith("-") else "asc"
        definitions.append(column)
    return html.Div(
        dag.AgGrid(
            id="grid",
            columnDefs=definitions,
            rowModelType="infinite",
            getRowId="params.data.feature.toString()",
            defaultColDef={"resizable": True, "suppressMovable": True, "sortingOrder": ["desc", "asc", None]},
            dashGridOptions={
                "cacheBlockSize": 100,
                "maxBlocksInCache": 20,
                "rowHeight": 34,
                "headerHeight": 36,
                "infiniteInitialRowCount": min(100, max(1, data["total"])),
                "theme": {"function": THEME},
            },
            style={"height": "560px", "width": "100%"},
        ),
        className="grid-box",
        key=link("", **{k: v for k, v in data["params"].items() if k != "sort"}),  # other filters: other rows
    )


PAGE = Page("/features", "Features", data, view)
