"""Finder of heads: all of them over any two numbers, the map and the table beside them, the first by a number, two compared."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.analyses.common.columns import Head
from attlas.dashboard.components import button_link, card, columns, empty, heading, metric_cards, picker, short
from attlas.dashboard.components.grid import grid
from attlas.dashboard.page import Data, Page, Params, link, parse_heads
from attlas.dashboard.pages.heads import beside, compare, finder_figures, search
from attlas.dashboard.pages.heads.numbers import OTHER_KINDS, all_numbers
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme

# What the axes show before one is chosen: the first of each that the workspace has.
_FIRST = {
    "x": ("qk_distance", "self_attention_score", "mean_distance", "mean_distance_px"),
    "y": ("pattern_entropy", "entropy", "normalized"),
    "color": ("unexplained", "sink_mass", "induction", "content_relevance"),
    "size": (),
    "metric": ("repeat_induction", "induction_score", "induction", "active", "entropy"),
}
_TOP = (5, 10, 20, 50)
_KINDS = ("heads", "anatomy", "entropy", *OTHER_KINDS)


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Every number of every head of a model, and what is chosen of them."""
    run = reader.pick("heads", params.get("run"), params.get("model"))
    model = params.get("model") or (run.model.name if run else None)
    if model is None:
        newest = next((other for kind in _KINDS if (other := reader.pick(kind))), None)
        model = newest.model.name if newest else None
    found: Data = {"run": run.id if run else None, "model": model, "rows": [], "summary": run.summary if run else {}}
    if model is None:
        return found
    heads = all_numbers(reader, model, run)
    names = list(heads.numbers)
    rows = list(heads.rows.values())
    if not names:
        return found
    chosen = {axis: asked if (asked := params.get(axis, "")) in names else _first(axis, names) for axis in _FIRST}
    lowest = params.get("order") == "lowest"
    n = next((n for n in _TOP if str(n) == params.get("n")), 10)
    ranked = sorted((r for r in rows if r.get(chosen["metric"]) is not None), key=lambda r: r[chosen["metric"]])
    ranked = ranked if lowest else ranked[::-1]
    lit = [head for head in parse_heads(params.get("heads")) if head in heads.rows]
    return found | {
        "rows": rows,
        "numbers": [vars(number) for number in heads.numbers.values()],
        **chosen,
        "order": "lowest" if lowest else "highest",
        "n": n,
        "top": [[row["layer"], row["head"]] for row in ranked[:n]],
        "lit": [list(head) for head in lit],
        "compare": compare.data(reader, run, heads, parse_heads(params.get("compare"))),
        "compare_asked": params.get("compare", ""),
        "beside": beside.data(reader, run, heads, chosen["metric"], params.get("beside")),
        "q": params.get("q", "")[:200],
        "search": search.data(reader, run, params.get("q", "")[:200]),
        "vision": bool(run and "grid" in run.summary) or reader.pick("vit", None, model) is not None,
    }


def _first(axis: str, names: list[str]) -> str:
    if axis == "size":
        return ""
    return next((name for name in _FIRST[axis] if name in names), names[0])


def view(data: Data, theme: Theme) -> Any:
    """Pickers and scatter beside the map, the first heads, the table, two heads."""
    if not data["rows"]:
        where = f" of {data['model']}" if data["model"] else ""
        command = f"attlas heads --model {data['model'] or 'gpt2-mini'}"
        return html.Div(
            [heading("Heads", _LEAD), empty(f"No heads{where} yet", "Read every head over a corpus:", command)]
        )
    titles = {number["name"]: number["title"] for number in data["numbers"]}
    return html.Div(
        [
            heading(f"Heads of {data['model']}", _LEAD),
            _summary(data),
            columns(_scatter(data, titles, theme), _map(data, titles, theme)),
            _top(data, titles),
            search.view(data),
            compare.view(data, theme),
            beside.view(data, titles[data["metric"]], theme),
            _table(data, titles),
            None if data["run"] else _hint(data),
        ]
    )


_LEAD = "Every head by any two of its numbers. A click opens a head, a box around heads lights them up."


def _hint(data: Data) -> Any:
    command = f"attlas heads --model {data['model']}"
    return empty("Not read over a corpus yet", "Scores, accounts and sequences of every head:", command)


def _summary(data: Data) -> Any:
    s = data["summary"]
    cards = metric_cards(
        [
            ("Heads", len(data["rows"]), ""),
            ("Sequences", s.get("n_sequences"), "images" if "grid" in s else "of the corpus"),
            ("Unexplained", s.get("unexplained"), "of the attention mass, mean of heads"),
            ("Induction", s.get("top_induction_head"), "strongest on repeated random tokens"),
            ("Previous token", s.get("top_prev_token_head"), "strongest on the corpus"),
        ]
    )
    told = [html.P(f"{note[:1].upper()}{note[1:]}.", className="note") for note in s.get("notes") or []]
    return html.Div([cards, *told])


def here(data: Data, **changed: Any) -> str:
    """This page's address with some parameters changed."""
    names = ("run", "x", "y", "color", "size", "metric", "order", "n")
    now = {name: data[name] for name in names} | {
        "heads": ",".join(f"{a}.{b}" for a, b in data["lit"]),
        "compare": data["compare_asked"],
        "q": data["q"],
        "beside": data["beside"]["asked"],
        "model": data["model"],
    }
    return link("/heads", **(now | changed))


def _options(data: Data) -> list[tuple[str, str]]:
    return [(number["name"], number["title"]) for number in data["numbers"]]


def _choose(data: Data, axis: str, label: str) -> Any:
    options = _options(data)
    names = [name for name, _ in options]
    extra = [("", "the same")] if axis == "size" else []
    return picker(axis, label, [*extra, *options], data[axis], _first(axis, names))


def _scatter(data: Data, titles: dict[str, str], theme: Theme) -> Any:
    axes = (("x", "Across"), ("y", "Up"), ("color", "Colour"), ("size", "Size"))
    units = {number["name"]: number["unit"] for number in data["numbers"]}
    meanings = {number["name"]: number["meaning"] for number in data["numbers"]}
    told = [
        html.Div([html.B(titles[data[axis]]), f": {meanings[data[axis]]}"])
        for axis in ("x", "y", "color", "size")
        if data[axis] and meanings[data[axis]]
    ]
    names = {axis: _axis(titles, units, data[axis]) for axis in ("x", "y", "color", "size")}
    return card(
        "All heads",
        html.Div([_choose(data, axis, label) for axis, label in axes], className="filters axes"),
        finder_figures.scatter(data, names, theme),
        html.Details([html.Summary("What these numbers are"), *told], className="table"),
        note="Ringed: the first by the number chosen below. Drag a box to light heads up.",
    )


def _axis(titles: dict[str, str], units: dict[str, str], name: str) -> str:
    if not name:
        return ""
    return f"{titles[name]}, {units[name]}" if units[name] else titles[name]


def _map(data: Data, titles: dict[str, str], theme: Theme) -> Any:
    return card(
        "By layer",
        finder_figures.layer_map(data, titles[data["metric"]], theme),
        note=f"{titles[data['metric']]}; outlined: the first {len(data['top'])}, and those lit up.",
        controls=picker(
            "metric", "Number", _options(data), data["metric"], _first("metric", [n for n, _ in _options(data)])
        ),
    )


def _top(data: Data, titles: dict[str, str]) -> Any:
    at = {(row["layer"], row["head"]): row for row in data["rows"]}
    tags = [
        dcc.Link(
            [html.B(f"{layer}.{head}"), f" {short(at[layer, head][data['metric']])}"],
            href=head_link(data, (layer, head)),
            className="tag",
        )
        for layer, head in data["top"]
    ]
    controls = [
        picker("order", "Order", [("highest", "highest first"), ("lowest", "lowest first")], data["order"], "highest"),
        picker("n", "How many", [(str(n), str(n)) for n in _TOP], str(data["n"]), "10"),
    ]
    release = button_link("Release the box", here(data, heads=None)) if data["lit"] else None
    return card(
        f"{data['order'].capitalize()} by {titles[data['metric']].lower()}",
        html.Div(tags, className="tags"),
        html.Div(release, className="buttons") if release else None,
        controls=controls,
        span=2,
    )


def head_link(data: Data, head: Head) -> str:
    """Address of one head's page."""
    return link("/head", model=data["model"], layer=head[0], head=head[1])


def _table(data: Data, titles: dict[str, str]) -> Any:
    first = [data[axis] for axis in ("metric", "x", "y", "color", "size") if data[axis]]
    shown = list(dict.fromkeys([*first, *titles]))
    lit = {tuple(head) for head in data["lit"]}
    rows: list[Row] = [
        {"place": f"{row['layer']}.{row['head']}", **{name: row.get(name) for name in shown}, "label": row.get("label")}
        for row in data["rows"]
        if not lit or (row["layer"], row["head"]) in lit
    ]
    down = -1 if data["order"] == "highest" else 1
    rows.sort(key=lambda r: (r[data["metric"]] is None, down * (r[data["metric"]] or 0)))
    names = {"place": "head"} | ({"label": "label"} if any(r["label"] for r in rows) else {})
    names |= {name: titles[name] for name in shown}
    what = f"{len(rows)} heads in the box" if lit else f"all {len(rows)}"
    place = {"cellRenderer": "HeadLink", "cellRendererParams": {"model": data["model"]}, "pinned": "left", "flex": 0}
    drawn = grid(rows, names, columns={"place": {**place, "width": 80, "minWidth": 60}})
    return card("Table", drawn, note=f"Every number, {what}.", span=2)


PAGE = Page("/heads", "Heads", data, view)
