"""One ViT head: importance by every measure, by class, reach, mean map, patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
from dash import html

from attlas.dashboard.components import (
    bars,
    button_link,
    card,
    columns,
    empty,
    heading,
    metric_cards,
    picker,
    short,
    table,
)
from attlas.dashboard.components.maps import colored, data_url, download
from attlas.dashboard.page import Data, Page, Params, integer, link
from attlas.dashboard.pages.vit.page import maps_of
from attlas.dashboard.pages.vit.view import ABLATIONS, METRICS, STRENGTH, measure_name
from attlas.dashboard.pictures import pattern_url
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme


def data(reader: WorkspaceReader, params: Params) -> Data:
    """All that the workspace holds about a head; by class for the chosen measure."""
    run = reader.pick("vit", params.get("run"), params.get("model"))
    layer, head = integer(params, "layer"), integer(params, "head")
    base: Data = {"run": run.id if run else None, "model": run.model.name if run else params.get("model")}
    base |= {"layer": layer, "head": head, "found": False}
    if run is None or layer is None or head is None:
        return base
    every = reader.rows(run, "importance", ("ablation", "metric"))
    rows = [r for r in every if (r["layer"], r["head"]) == (layer, head)]
    strength = reader.rows(run, "strength", layer=layer, head=head)
    if not rows and not strength:
        return base
    measures = [f"{r['ablation']}:{r['metric']}" for r in rows]
    asked = params.get("measure", "")
    measures.sort(key=lambda m: [*ABLATIONS, m.partition(":")[0]].index(m.partition(":")[0]))
    measure = asked if asked in measures else (measures[0] if measures else "")
    ablation, _, metric = measure.partition(":")
    maps = maps_of(reader.arrays(run, "maps"), layer)
    return base | {
        "found": True,
        "main_metric": run.summary.get("metric"),
        "n_layers": 1 + max(r["layer"] for r in every) if every else layer + 1,
        "n_heads": 1 + max(r["head"] for r in every) if every else head + 1,
        "importance": [{**r, "rank": _rank(every, r)} for r in rows],
        "measure": measure,
        "measures": measures,
        "by_class": reader.rows(
            run, "importance_by_class", ("class",), layer=layer, head=head, ablation=ablation, metric=metric
        ),
        "strength": strength[0] if strength else {},
        "rings": reader.rows(run, "rings", ("hop",), layer=layer, head=head),
        "map": maps[head] if head < len(maps) else None,
        "patterns": _patterns(reader, run.model.name, layer, head),
    }


def _rank(every: list[dict[str, Any]], row: dict[str, Any]) -> int:
    """Place of a head by one measure, 1 the most important."""
    same = [r["value"] for r in every if (r["ablation"], r["metric"]) == (row["ablation"], row["metric"])]
    return 1 + sum(value > row["value"] for value in same)


def _patterns(reader: WorkspaceReader, model: str, layer: int, head: int) -> dict[str, Any] | None:
    run = reader.pick("vit_patterns", None, model)
    shares = reader.rows(run, "head_clusters", ("cluster",), layer=layer, head=head)
    if run is None or not shares:
        return None
    names = {r["cluster"]: r["name"] for r in reader.rows(run, "clusters", ("cluster",))}
    maps = [r["map"] for r in reader.rows(run, "patterns", ("cluster", "map"), layer=layer, head=head)]
    return {
        "run": run.id,
        "shares": [{**r, "cluster": f"{r['cluster']} {names.get(r['cluster'], '')}"} for r in shares],
        "examples": maps[:: max(1, len(maps) // 12)][:12],
    }


def view(data: Data, theme: Theme) -> Any:
    """Headline numbers, importance and classes, reach and mean map, patterns."""
    if not data["found"]:
        what = "No head chosen" if data["layer"] is None or data["head"] is None else "No such head"
        command = f"attlas vit --model {data['model'] or 'vit-mini'}"
        return html.Div([heading("ViT head"), empty(what, "Choose one on the ViT heads page, or rank them:", command)])
    layer, head = data["layer"], data["head"]
    s = data["strength"]
    main = [r for r in data["importance"] if r["metric"] == data["main_metric"]]
    main.sort(key=lambda r: [*ABLATIONS, r["ablation"]].index(r["ablation"]))
    first = next(iter(main or data["importance"]), None)
    zero = next((r for r in main if r["ablation"] == "zero" and r is not first), None)
    beside = f"; zeroed {short(zero['value'])}, rank {zero['rank']}" if zero else ""
    cards = [
        (
            METRICS[first["metric"]][0],
            first["value"],
            f"rank {first['rank']} of {data['n_layers'] * data['n_heads']}{beside}",
        )
        if first and first["metric"] in METRICS
        else ("", None, ""),
        ("Reach", s.get("mean_distance_px"), "px"),
        ("Entropy", s.get("entropy"), "nats"),
        ("Content relevance", s.get("content_relevance"), "of its map's variance is between images"),
    ]
    return html.Div(
        [
            heading(
                f"Head {layer}.{head} of {data['model']}", "One head, by everything that was measured.", *_doors(data)
            ),
            metric_cards(cards),
            columns(_importance(data, theme), _by_class(data, theme)),
            columns(_reach(data, theme), _mean_map(data)),
            _drawn(data, theme),
        ]
    )


def _doors(data: Data) -> list[Any]:
    layer, head = data["layer"], data["head"]
    at, last = layer * data["n_heads"] + head, data["n_layers"] * data["n_heads"] - 1

    def door(text: str, to: int, rel: str) -> Any:
        if not 0 <= to <= last:
            return button_link(text, None)
        a, b = divmod(to, data["n_heads"])
        return button_link(text, link("/vit-head", run=data["run"], layer=a, head=b), rel)

    return [
        button_link("All heads", link("/vit", run=data["run"], layer=layer, head=head)),
        button_link("Its images", link("/head", model=data["model"], layer=layer, head=head)),
        button_link("On a picture", link("/image", model=data["model"], layer=layer, head=head)),
        door("← before", at - 1, "prev"),
        door("after →", at + 1, "next"),
    ]


def _importance(data: Data, theme: Theme) -> Any:
    rows = [
        {
            **r,
            "metric": METRICS.get(r["metric"], (r["metric"], ""))[0],
            "ablation": ABLATIONS.get(r["ablation"], r["ablation"]),
        }
        for r in data["importance"]
    ]
    if not rows:
        return card("Importance", html.P("Not measured in this run.", className="note"))
    names = {"metric": "measure", "ablation": "set to", "value": "value", "low": "low", "high": "high", "rank": "rank"}
    drawn = [{**r, "ablation": ABLATIONS.get(r["ablation"], r["ablation"])} for r in data["importance"]]
    figure = bars(drawn, "metric", "value", theme, group="ablation", y_title="effect", height=260)
    return card(
        "Importance",
        figure,
        table(rows, names, summary="Measures, with 95 % intervals and rank", open_=True),
        note="What changes when this head alone is set to its mean over images at each position, to zero, or as the table "
        "says; mean over images.",
    )


def _by_class(data: Data, theme: Theme) -> Any:
    rows = data["by_class"]
    if not rows:
        return card("By class", html.P("The images of this run have no classes.", className="note"))
    options = [(m, measure_name(m)) for m in data["measures"]]
    names = {"class_name": "class", "value": "value", "low": "low", "high": "high", "n_images": "images"}
    ordered = sorted(rows, key=lambda r: -r["value"])
    return card(
        "By class",
        bars(ordered[:40], "class_name", "value", theme, x_title="class", y_title="effect"),
        table(ordered, names, summary="The numbers, with 95 % intervals"),
        note="The same effect over the images of one class, the strongest first.",
        controls=picker("measure", "Measure", options, data["measure"], data["measures"][0], wide=True),
    )


def _reach(data: Data, theme: Theme) -> Any:
    if not data["rings"]:
        return card("How far it looks", html.P("Not measured in this run.", className="note"))
    rows = [
        {"what": f"{name} ({unit})", "value": data["strength"][m]}
        for m, (name, unit) in STRENGTH.items()
        if data["strength"].get(m) is not None
    ]
    return card(
        "How far it looks",
        bars(data["rings"], "hop", "mass", theme, x_title="hops, patches", y_title="share of attention", height=220),
        bars(data["rings"], "hop", "mean_per_patch", theme, x_title="hops, patches", y_title="a patch", height=200),
        table(rows, {"what": "measure", "value": "mean"}, summary="Strength", open_=True),
        note="Attention of patches on the ring of patches k hops away: in all, each query counted equally; and a patch of the "
        "ring, each pair of patches counted equally (the table rings has it by query too).",
    )


def _mean_map(data: Data) -> Any:
    if data["map"] is None:
        return card("Its mean map", html.P("This run kept no maps.", className="note"))
    pixels = colored(np.array(data["map"]))
    large = np.kron(pixels, np.ones((16, 16, 1), dtype=np.uint8))
    name = f"attlas-{data['model']}-{data['layer']}.{data['head']}.png"
    return card(
        "Its mean map",
        html.Img(src=data_url(pixels), alt="mean recentred map", className="wide map-large"),
        html.Div([download(large, name)], className="buttons"),
        note="Mean attention of a patch, recentred on the patch itself (the middle); brighter is more.",
    )


def _drawn(data: Data, theme: Theme) -> Any:
    found = data["patterns"]
    if not found:
        command = html.Code(f"attlas vit patterns --model {data['model']}")
        return card("What it draws", html.P(["Patterns are not measured yet: ", command], className="note"), span=2)
    examples = [html.Img(src=pattern_url(found["run"], m), alt=f"map {m}", className="wide") for m in found["examples"]]
    return card(
        "What it draws",
        bars(found["shares"], "cluster", "share", theme, y_title="share of its maps", height=220),
        html.Div(examples, className="maps"),
        note="Its single-query maps by cluster, and some of them: the image, and where the outlined patch looks.",
        span=2,
    )


PAGE = Page("/vit-head", "ViT head", data, view, nav=False)
