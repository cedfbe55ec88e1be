"""Where queries, keys, values and answers of a head lie: pairs drawn by weight, for the script `assets/projection.js`."""

from __future__ import annotations

from typing import Any

from dash import html

from attlas.dashboard.components import attributes, card, empty, heading
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.page import Data, Page, Params, integer, link
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.workspace import Run

# kind of vector → its name, and whose position it is of
VECTORS = {
    "q": ("queries", "query"),
    "q_rotated": ("queries, rotated", "query"),
    "k": ("keys", "key"),
    "k_rotated": ("keys, rotated", "key"),
    "v": ("values", "key"),
    "z": ("answers z", "query"),
}
PLACES = 4  # of coordinates sent


def data(reader: WorkspaceReader, params: Params) -> Data:
    """The drawn pairs of a head on the first two components of each kind of vector, and on maps where there are any."""
    run = reader.pick("head_points", params.get("run"), params.get("model"))
    layer, head = integer(params, "layer") or 0, integer(params, "head") or 0
    found: Data = {"run": run.id if run else None, "model": run.model.name if run else params.get("model")}
    found |= {"layer": layer, "head": head, "points": [], "views": []}
    if run is None or not (0 <= layer < 2**15 and 0 <= head < 2**15):
        return found
    one: dict[str, int] = {"layer": layer, "head": head}
    rows = reader.rows(run, "head_points", ("point",), **one)
    found["points"] = [
        {
            **{name: row[name] for name in ("sequence", "query_at", "key_at", "pair_weight")},
            "query_token": visible(row["query_token"] or ""),
            "key_token": visible(row["key_token"] or ""),
        }
        for row in rows
    ]
    shares = {row["vectors"]: row["axes_share"] for row in reader.rows(run, "head_axes", ("vectors",), **one)}
    for name, (title, of) in VECTORS.items():
        places = [(row.get(f"{name}_axes") or [])[:2] for row in rows]
        if places and all(len(place) == 2 for place in places):
            told = [
                f"component {n + 1}, {100 * share:.0f} % of the variance" for n, share in enumerate(shares[name][:2])
            ]
            found["views"].append(_view(name, title, of, places, told))
    points = {row["point"]: n for n, row in enumerate(rows)}
    mapped: dict[str, list[Any]] = {}
    for row in reader.rows(run, "head_maps", ("vectors", "point"), **one):
        places = mapped.setdefault(row["vectors"], [None] * len(rows))
        places[points[row["point"]]] = [row["map_x"], row["map_y"]]
    kind = str(run.summary.get("map", "")).upper()
    for name, places in mapped.items():
        title, of = VECTORS[name]
        found["views"].append(_view(f"{name}_map", f"{title}, {kind}", of, places, ["", ""]))
    return found | {"data": run.data.hash if run.data else None, "map": run.summary.get("map")}


def _view(name: str, title: str, of: str, places: list[Any], axes: list[str]) -> Row:
    rounded = [[round(float(v), PLACES) for v in place] if place else None for place in places]
    return {"name": name, "title": title, "of": of, "places": rounded, "axes": axes}


def projection_card(data: Data) -> Any:
    """Where the script draws them; None without a run of `head_points`."""
    if not data["points_run"]:
        return None
    source = link("/api/head-points", run=data["points_run"], layer=data["layer"], head=data["head"])
    same = {"data-same": "yes"} if data["points_same"] else {}
    told = "" if same else " They are from another text than the sequences above."
    return card(
        "Its queries, keys and values",
        html.Div(className="projection", **attributes({"data-projection": source, **same})),
        note="Pairs of query and key drawn by weight. A token under the pointer above lights up its points (large) and those "
        f"of the same text (ringed); a click on a point goes to its sequence.{told}",
        span=2,
    )


def of_head(reader: WorkspaceReader, model: str | None, atlas: Run | None) -> Data:
    """What `projection_card` needs."""
    run = reader.pick("head_points", None, model)
    same = bool(run and atlas and run.data and atlas.data and run.data.hash == atlas.data.hash)
    return {"points_run": run.id if run else None, "points_same": same}


def view(data: Data, theme: Theme) -> Any:
    """The projections alone."""
    if not data["points"]:
        command = f"attlas heads project --model {data['model'] or 'gpt2-mini'}"
        return html.Div([heading("Projections of a head"), empty("None yet", "Draw pairs of every head:", command)])
    title = f"Projections of head {data['layer']}.{data['head']} of {data['model']}"
    return html.Div([heading(title), projection_card(data | {"points_run": data["run"], "points_same": False})])


PAGE = Page("/head-points", "Projections of a head", data, view, nav=False)
