"""The sequences that show a head, with what every token attends to there: read by the script `assets/gallery.js` too."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np
from dash import html

from attlas.analyses.common.token_mass import token_mass
from attlas.dashboard.components import attributes, card, empty, heading, picker, table
from attlas.dashboard.components.maps import data_url
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.page import Data, Page, Params, integer, link, parse
from attlas.dashboard.preview import card_html, heading_html
from attlas.dashboard.reader import Row, WorkspaceReader, clean
from attlas.dashboard.theme import Theme
from attlas.data.models_catalog import catalog
from attlas.data.workspace import Run

BY = {"weight": "strongest weight", "norm": "largest output", "rest": "unexplained mass"}
MOST_TOKENS = 16_384  # of one answer; a longer list comes in parts
SCALE = 10_000  # weights are whole numbers of ten-thousandths: exact as kept, and short
N_TOP = 50
FIRST = 3  # sequences that assets/gallery.js asks for first


def data(reader: WorkspaceReader, params: Params) -> Data:
    """A head's kept sequences by one measure, the strongest first; `limit` at a time from `offset` on."""
    run = reader.pick("heads", params.get("run"), params.get("model"))
    layer, head = integer(params, "layer") or 0, integer(params, "head") or 0
    by = params.get("by") if params.get("by") in BY else "weight"
    found: Data = {"run": run.id if run else None, "model": run.model.name if run else params.get("model")}
    found |= {"layer": layer, "head": head, "by": by, "scale": SCALE, "sequences": [], "total": 0, "next": None}
    if run is None or not (0 <= layer < 2**15 and 0 <= head < 2**15):
        return found
    every = _rows(reader, run, layer, head)
    rows = [row for row in every if row["by"] == by]
    asked = [row for row in every if row["sequence"] == integer(params, "sequence")]
    if asked:  # comes first, whatever it is ranked by
        asked.sort(key=lambda row: row["by"] != by)
        rows = [asked[0] | {"asked": True}, *rows]
    first = max(0, integer(params, "offset") or 0)
    limit = min(max(1, integer(params, "limit") or 1000), 1000)
    texts = reader.texts(run, [row["sequence"] for row in rows[first : first + limit]])
    shown: list[Row] = []
    n_tokens = 0
    for row in rows[first : first + limit]:
        tokens = texts.get(row["sequence"]) or []
        row = as_sequence(row, tokens)
        n_tokens += len(row["counts"])
        if shown and n_tokens > MOST_TOKENS:
            break
        shown.append(row)
    grid = run.summary.get("grid")
    if grid:
        _pictures(reader, run, shown)
    last = first + len(shown)
    n_intervals = 1 + max((row["interval"] for row in rows), default=0)
    return found | {
        "sequences": shown,
        "total": len(rows),
        "next": last if last < len(rows) else None,
        "n_intervals": n_intervals,
        "grid": grid,
        "n_prefix": run.summary.get("n_prefix", 0),
        "explain": None if grid else _explained_by(reader, run.model.name),
    }


def _explained_by(reader: WorkspaceReader, model: str) -> str | None:
    """In terms of what the circuit page explains a score of this model; None where it cannot run it."""
    here = any(card.name == model and card.present for card in catalog()) or model in reader.jobs.folders
    return None if not here else "features" if reader.runs("sae", model) else "heads and MLPs"


def _rows(reader: WorkspaceReader, run: Run, layer: int, head: int) -> list[Row]:
    """Rows of one head, the highest interval first, with query, key and weight as arrays; those read last are kept."""
    path = reader.workspace.folder(run) / "head_sequences.parquet"
    return reader.kept(path, (layer, head), lambda: _read(reader, run, layer, head))


def _read(reader: WorkspaceReader, run: Run, layer: int, head: int) -> list[Row]:
    found = reader.workspace.read_rows(run, "head_sequences", layer=layer, head=head)
    names = [name for name in found.column_names if name not in ("query", "key", "weight")]
    rows: list[Row] = found.select(names).to_pylist()
    for name in ("query", "key", "weight") if rows else ():
        lists = found[name].combine_chunks()
        values, ends = lists.values.to_numpy(), lists.offsets.to_numpy()
        for row, start, end in zip(rows, ends, ends[1:], strict=False):
            row[name] = values[start:end]
    return sorted(rows, key=lambda row: (row["by"], -row["interval"], row["rank"]))


def as_sequence(row: Row, tokens: list[str]) -> Row:
    """Keys of query 0, then those of query 1, …; `counts` says how many each has."""
    order = np.argsort(row["query"], kind="stable")
    n = max(len(tokens), int(max(row["query"].max(initial=-1), row["key"].max(initial=-1))) + 1)
    return {
        **{name: row[name] for name in ("interval", "rank", "sequence", "strength")},
        "asked": row.get("asked", False),
        "tokens": [visible(token) for token in tokens],
        "counts": np.bincount(row["query"], minlength=n),
        "keys": row["key"][order],
        "weights": (row["weight"][order].astype(np.float64) * SCALE).round().astype(np.int32),
    }


def _pictures(reader: WorkspaceReader, run: Run, shown: list[Row]) -> None:
    arrays = reader.arrays(run, "pictures")
    at = {int(image): n for n, image in enumerate(arrays.get("images", ()))}
    for row in shown:
        row["picture"] = data_url(arrays["thumbnails"][at[row["sequence"]]]) if row["sequence"] in at else ""


def top_tokens(reader: WorkspaceReader, run: Run | None, layer: int, head: int, by: str) -> Data:
    """Tokens by the weight they give as queries and get as keys in the kept sequences, pairs with the first position left
    out (HeadVis's lists, which count them)."""
    if run is None or run.summary.get("grid"):
        return {"queries": [], "keys": []}
    rows = [row for row in _rows(reader, run, layer, head) if row["by"] == by]
    texts = reader.texts(run, [row["sequence"] for row in rows])
    inner = [(row["query"] > 0) & (row["key"] > 0) for row in rows]
    return {
        plural: [
            {"token": visible(token), "weight": weight}
            for token, weight in token_mass(
                (
                    (texts.get(row["sequence"]) or [], row[name][chosen], row["weight"][chosen])
                    for row, chosen in zip(rows, inner, strict=True)
                ),
                N_TOP,
            )
        ]
        for name, plural in (("query", "queries"), ("key", "keys"))
    }


def source(data: Data, by: str, limit: int | None = None) -> str:
    """Address of the sequences of one head; `limit` at a time, or as the page is scrolled."""
    place = {name: data[name] for name in ("run", "layer", "head")}
    return link(
        "/api/head-sequences", **place, by=by, limit=limit, sequence=data.get("sequence") if not limit else None
    )


def gallery(data: Data, by: str, limit: int | None = None) -> html.Div:
    """Where the script draws the sequences of one head."""
    return html.Div(className="gallery", **attributes({"data-gallery": source(data, by, limit)}))


def preview(reader: WorkspaceReader, params: Params) -> str:
    """The sequences alone, as HTML."""
    run = reader.pick("heads", params.get("run"), params.get("model"))
    if run is None:
        return ""
    layer, head = integer(params, "layer") or 0, integer(params, "head") or 0
    by = params["by"] if params.get("by") in BY else "weight"
    told = source({"run": run.id, "layer": layer, "head": head, "sequence": integer(params, "sequence")}, by)
    images = bool(run.summary.get("grid"))
    card_ = card_html(
        "Images" if images else "Sequences",
        f'<div class="gallery" data-gallery="{escape(told)}"></div>{_first(reader, told)}',
        HELP_IMAGES if images else HELP,
    )
    return heading_html(f"Head {layer}.{head}", f"How one head of {run.model.name} attends.") + card_


def _first(reader: WorkspaceReader, told: str) -> str:
    """The answer to the script's first question, in the document: it need not be asked for."""
    asked = f"{told}&limit={FIRST}"
    found = clean(data(reader, parse(asked.partition("?")[2])))
    text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="first-sequences" data-of="{escape(asked)}">{text}</script>'


HELP = (
    "Hover a token: warm, where it looks; cool, later tokens that look at it. A click locks it (Shift adds another), Esc "
    "releases, ← and → walk, ↑ goes to its strongest key, ↓ to the token that looks at it most."
)
HELP_IMAGES = (
    "Hover a patch: warm, where it looks; ringed, patches that look at it. A click locks it (Shift adds another), Esc "
    "releases, arrow keys walk."
)


def view(data: Data, theme: Theme) -> Any:
    """The sequences alone."""
    if not data["sequences"]:
        command = f"attlas heads --model {data['model'] or 'gpt2-mini'}"
        return html.Div([heading("Sequences of a head"), empty("None yet", "Read every head over a corpus:", command)])
    title = f"Sequences of head {data['layer']}.{data['head']} of {data['model']}"
    return html.Div([heading(title, "By part of all sequences, the strongest first."), sequences_card(data)])


def sequences_card(data: Data) -> Any:
    """The gallery with its picker; `data` names run, layer, head, by and grid."""
    images = bool(data["grid"])
    control = picker("by", "Ranked by", [(name, BY[name]) for name in ("weight", "norm", "rest")], data["by"], "weight")
    return card(
        "Images" if images else "Sequences",
        gallery(data, data["by"]),
        note=HELP_IMAGES if images else HELP,
        controls=control,
        span=2,
    )


def tokens_card(data: Data) -> Any:
    """Top query and key tokens."""
    if not data["queries"]:
        return None
    parts = [
        html.Div([html.H3(title), table(data[which], {"token": "token", "weight": "summed weight"}, open_=True)])
        for which, title in (("queries", "Tokens that look"), ("keys", "Tokens looked at"))
    ]
    note = f"Summed weight in the sequences above, pairs with the first position left out; the first {N_TOP}."
    return card("Its tokens", html.Div(parts, className="pair"), note=note, span=2)


PAGE = Page("/head-sequences", "Sequences of a head", data, view, nav=False, preview=preview)
