"""ViT heads: which matter, and how far they look."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from dash import dcc, html

from attlas.dashboard.components import bars, card, columns, curve, empty, heading, heatmap, metric_cards, picker, table
from attlas.dashboard.page import Data, Page, Params, integer, link
from attlas.dashboard.queries import Row, Store
from attlas.dashboard.theme import Theme

METRICS = {
    "js": ("Jensen-Shannon divergence", "nats"),
    "prob_drop": ("Drop of the class's probability", "fraction"),
    "accuracy_drop": ("Drop of accuracy", "fraction"),
    "cls_distance": ("Change of the CLS output", "cosine distance"),
}
STRENGTH = {
    "mean_distance_px": ("Mean distance", "px"),
    "cls_to_patch": ("CLS looks at patches", "fraction"),
    "patch_to_cls": ("Patches look at CLS", "fraction"),
    "patch_to_prefix": ("Patches look at CLS and registers", "fraction"),
    "self": ("A patch looks at itself", "fraction"),
    "entropy": ("Entropy", "nats"),
    "content_relevance": ("Content relevance", "fraction"),
}


def data(store: Store, params: Params) -> Data:
    """Importance under the chosen metric and ablation; strength and rings of the chosen head."""
    run = store.pick("vit", params.get("run"), params.get("model"))
    rows = store.rows(run, "importance", ("layer", "head"))
    if run is None or not rows:
        return {"run": None, "model": params.get("model")}
    ablations = list(dict.fromkeys(r["ablation"] for r in rows))
    ablation = params.get("ablation") if params.get("ablation") in ablations else ablations[0]
    metrics = [m for m in METRICS if any(r["metric"] == m and r["ablation"] == ablation for r in rows)]
    first = run.summary.get("metric") if run.summary.get("metric") in metrics else metrics[0]
    metric = params.get("metric") if params.get("metric") in metrics else first
    shown = [r for r in rows if r["metric"] == metric and r["ablation"] == ablation]
    top = max(shown, key=lambda r: r["value"])
    heads = {(r["layer"], r["head"]) for r in shown}
    layer, head = integer(params, "layer"), integer(params, "head")
    if layer is None or (layer, head) not in heads:
        layer, head = int(top["layer"]), int(top["head"])
    strength = params.get("strength") if params.get("strength") in STRENGTH else "mean_distance_px"
    return {
        "run": run.id,
        "model": run.model.name,
        "n_images": run.summary.get("n_images"),
        "ablation": ablation,
        "ablations": ablations,
        "metric": metric,
        "default_metric": first,
        "metrics": metrics,
        "strength": strength,
        "layer": layer,
        "head": head,
        "importance": shown,
        "strengths": store.rows(run, "strength", ("layer", "head")),
        "rings": store.rows(run, "rings", ("hop",), layer=layer, head=head),
        "all_rings": store.rows(run, "rings", ("layer", "head", "hop")),
        "maps": _maps(store.arrays(run, "maps"), layer),
        "summary": run.summary,
    }


def _maps(arrays: dict[str, np.ndarray], layer: int) -> list[list[list[float]]]:
    """Recentred mean maps of one layer's heads, 4 digits."""
    maps = arrays.get("recentred")
    return [] if maps is None or layer >= len(maps) else np.round(maps[layer].astype(float), 4).tolist()


def view(data: Data, look: Theme) -> Any:
    """Importance and strength maps; the chosen head's rings; the layer's mean maps."""
    lead = "Which heads of a vision model matter, how far they look, and what they draw."
    if not data["run"]:
        where = f" for {data['model']}" if data.get("model") else ""
        return html.Div(
            [heading("ViT heads", lead), empty(f"Nothing{where} yet", "Rank the heads:", "attlas vit --model vit-mini")]
        )
    s = data["summary"]
    return html.Div(
        [
            heading(f"ViT heads of {data['model']}", lead),
            metric_cards(
                [
                    ("Head that matters most", s.get("top_head"), f"by {s.get('metric')}"),
                    ("Reach, first layer", s.get("mean_distance_first_layer_px"), "px, mean of heads"),
                    ("Reach, last layer", s.get("mean_distance_last_layer_px"), "px, mean of heads"),
                    ("Images", data["n_images"], "measured"),
                ]
            ),
            columns(_importance(data, look), _strength(data, look)),
            columns(_rings(data, look), _drawn(data)),
        ]
    )


def _importance(data: Data, look: Theme) -> Any:
    name, unit = METRICS[data["metric"]]
    controls = [
        picker(
            "metric", "Metric", [(m, METRICS[m][0]) for m in data["metrics"]], data["metric"], data["default_metric"]
        ),
        picker("ablation", "Head set to", [(a, a) for a in data["ablations"]], data["ablation"], data["ablations"][0]),
    ]
    rows: list[Row] = data["importance"]
    names = {
        "layer": "layer",
        "head": "head",
        "value": name.lower(),
        "low": "low",
        "high": "high",
        "n_images": "images",
    }
    return card(
        "Importance",
        heatmap(rows, "value", look, unit=unit),
        table(sorted(rows, key=lambda r: -r["value"]), names, summary="The numbers, with 95 % intervals"),
        note=f"{name} ({unit}) when the head alone is set to {data['ablation']}; mean over images.",
        controls=controls,
    )


def _strength(data: Data, look: Theme) -> Any:
    rows: list[Row] = data["strengths"]
    if not rows:
        return card("Strength", html.P("Not measured in this run.", className="note"))
    there = [m for m in STRENGTH if rows[0].get(m) is not None]
    metric = data["strength"] if data["strength"] in there else there[0]
    name, unit = STRENGTH[metric]
    return card(
        "Strength",
        heatmap(rows, metric, look, unit=unit),
        table(
            rows,
            {"layer": "layer", "head": "head", **{m: STRENGTH[m][0].lower() for m in there}},
            summary="The numbers",
        ),
        note=f"{name}, {unit}; mean over images and patch queries.",
        controls=picker("strength", "What", [(m, STRENGTH[m][0]) for m in there], metric, "mean_distance_px"),
    )


def _rings(data: Data, look: Theme) -> Any:
    layer, head = data["layer"], data["head"]
    lines = {}
    for other in sorted({(r["layer"], r["head"]) for r in data["all_rings"]}):
        part = [r for r in data["all_rings"] if (r["layer"], r["head"]) == other]
        lines[f"{other[0]}.{other[1]}"] = ([r["hop"] for r in part], [r["mass"] for r in part])
    options = [(str(i), f"Layer {i}") for i in sorted({r["layer"] for r in data["importance"]})]
    heads = [(str(i), f"Head {i}") for i in sorted({r["head"] for r in data["importance"]})]
    controls = [picker("layer", "", options, str(layer), ""), picker("head", "", heads, str(head), "")]
    return card(
        f"How far head {layer}.{head} looks",
        bars(data["rings"], "hop", "mass", look, x_title="hops, patches", y_title="share of attention", height=220),
        curve(lines, look, x_title="hops", y_title="share of attention", strong=f"{layer}.{head}", height=220),
        note="Attention of patches on the ring of patches k hops away. Below: the same beside all other heads.",
        controls=controls,
    )


def _drawn(data: Data) -> Any:
    if not data["maps"]:
        return card("What they draw", html.P("This run kept no maps.", className="note"))
    cells = [
        dcc.Link(
            [html.Img(src=_picture(np.array(m)), alt=f"mean map of head {data['layer']}.{i}"), f"{data['layer']}.{i}"],
            href=link(
                "/vit", run=data["run"], layer=data["layer"], head=i, metric=data["metric"], ablation=data["ablation"]
            ),
            className="map" + (" here" if i == data["head"] else ""),
        )
        for i, m in enumerate(data["maps"])
    ]
    return card(
        f"What the heads of layer {data['layer']} draw",
        html.Div(cells, className="maps"),
        note="Mean attention of a patch, recentred on the patch itself (the middle); brighter is more.",
    )


def _picture(values: np.ndarray) -> str:
    """A map as a PNG data URL, one pixel a cell, in the sequential scale of the dark theme."""
    from PIL import Image
    from plotly.colors import sample_colorscale, unlabel_rgb

    from attlas.dashboard.theme import DARK

    top = float(values.max()) or 1.0
    levels = np.sqrt(np.clip(values / top, 0, 1))  # the far field is faint: the root makes it visible
    colors = sample_colorscale(DARK.scale(), levels.ravel().tolist(), colortype="rgb")
    pixels = np.array([unlabel_rgb(c) for c in colors]).reshape(*values.shape, 3).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


PAGE = Page("/vit", "ViT heads", data, view)
