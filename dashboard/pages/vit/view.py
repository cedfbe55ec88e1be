"""How the page about a ViT's heads looks."""

from __future__ import annotations

from typing import Any

import numpy as np
from dash import dcc, html

from attlas.dashboard.components import (
    bars,
    button_link,
    card,
    columns,
    curve,
    empty,
    heading,
    metric_cards,
    picker,
    short,
    table,
)
from attlas.dashboard.components.maps import colored, data_url
from attlas.dashboard.components.vit_figures import Head, head_map, heads_of, strength_profile
from attlas.dashboard.page import Data, link
from attlas.dashboard.pages.vit.patterns_view import patterns_cards
from attlas.dashboard.pages.vit.urls import here
from attlas.dashboard.reader import Row
from attlas.dashboard.theme import Theme

METRICS = {
    "js": ("Jensen-Shannon divergence", "nats"),
    "prob_drop": ("Drop of the class's probability", "fraction"),
    "accuracy_drop": ("Drop of accuracy", "fraction"),
    "cls_distance": ("Change of the CLS output", "cosine distance"),
    "knn_drop": ("Drop of nearest-neighbour accuracy", "fraction"),
    "probe_drop": ("Drop of the linear probe's accuracy", "fraction"),
}
STRENGTH = {
    "mean_distance_px": ("Mean distance", "px"),
    "cls_to_patch": ("CLS looks at patches", "fraction"),
    "patch_to_cls": ("Patches attend to CLS", "fraction"),
    "patch_to_prefix": ("Patches attend to CLS and registers", "fraction"),
    "cls_to_registers": ("CLS looks at registers", "fraction"),
    "patch_to_registers": ("Patches attend to registers", "fraction"),
    "self": ("A patch looks at itself", "fraction"),
    "entropy": ("Entropy", "nats"),
    "content_relevance": ("Content relevance", "fraction"),
}
ABLATIONS = {
    "mean_per_position": "mean at each position",
    "zero": "zero",
    "mean": "mean over positions",
    "resample": "another image's",
}
LEAD = "Which heads of a vision model matter, how far they attend, and what they draw."


def view(data: Data, theme: Theme) -> Any:
    """Importance beside strength, patterns, the chosen head's rings, curves of removal."""
    if not data["run"]:
        where = f" for {data['model']}" if data.get("model") else ""
        return html.Div(
            [heading("ViT heads", LEAD), empty(f"Nothing{where} yet", "Rank the heads:", "attlas vit --model vit-mini")]
        )
    s = data["summary"]
    door = button_link("Look at a picture", link("/image", model=data["model"]))
    return html.Div(
        [
            heading(f"ViT heads of {data['model']}", LEAD, door),
            metric_cards(
                [
                    ("Head that matters most", s.get("top_head"), f"by {s.get('metric')}"),
                    ("Reach, first layer", s.get("mean_distance_first_layer_px"), "px, mean of heads"),
                    ("Reach, last layer", s.get("mean_distance_last_layer_px"), "px, mean of heads"),
                    ("Images", data["n_images"], "measured"),
                ]
            ),
            _named(data),
            _lit(data),
            columns(_importance(data, theme), _strength(data, theme)),
            *patterns_cards(data, theme, importance_of(data)),
            columns(_rings(data, theme), _drawn(data)),
            columns(_pruning(data, theme), _tokens(data, theme)),
            columns(_agreement(data), _rollout(data, theme)),
        ]
    )


def _named(data: Data) -> Any:
    """The classes that were given as text, and their prompts."""
    asked = data.get("zero_shot")
    if not asked:
        return None
    names, prompts = asked["classes"], ", ".join(f"“{t}”" for t in asked["templates"])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return html.P(f"Classes given as text: {', '.join(names[:12])}{more}; prompts {prompts}.", className="note")


def importance_of(data: Data) -> dict[Head, float]:
    """Head → the chosen metric."""
    return {(r["layer"], r["head"]): r["value"] for r in data["importance"]}


def _chosen(data: Data) -> Head:
    return data["layer"], data["head"]


def _lit(data: Data) -> Any:
    """What is lit up by a box around points, and the way back."""
    if not data["lit"]:
        return None
    names = ", ".join(f"{a}.{b}" for a, b in data["lit"][:24]) + (" …" if len(data["lit"]) > 24 else "")
    parts = [html.B("Lit up: "), names, button_link("All heads", here(data, heads=None, map=None))]
    return html.Div(parts, className="buttons", id="lit")


def _importance(data: Data, theme: Theme) -> Any:
    name, unit = METRICS[data["metric"]]
    controls = [
        picker(
            "metric",
            "Metric",
            [(m, METRICS[m][0]) for m in data["metrics"]],
            data["metric"],
            data["default_metric"],
            wide=True,
        ),
        picker(
            "ablation",
            "Head set to",
            [(a, ABLATIONS.get(a, a)) for a in data["ablations"]],
            data["ablation"],
            data["ablations"][0],
        ),
    ]
    rows: list[Row] = data["importance"]
    names = {
        "layer": "layer",
        "head": "head",
        "value": name.lower(),
        "low": "low",
        "high": "high",
        **{f"set to {a}": f"set to {ABLATIONS.get(a, a)}" for a in data["ablations"] if a != data["ablation"]},
        "n_images": "images",
    }
    layer, head = _chosen(data)
    lit = heads_of(data["lit"])
    return card(
        "Importance",
        head_map(rows, "value", theme, unit=unit, chosen=(layer, head), lit=lit),
        html.Div(
            [
                button_link(
                    f"Head {layer}.{head} on its own page",
                    link("/vit-head", model=data["model"], run=data["run"], layer=layer, head=head),
                )
            ],
            className="buttons",
        ),
        table(sorted(rows, key=lambda r: -r["value"]), names, summary="The numbers, with 95 % intervals"),
        note=f"{name} ({unit}) when the head alone is set to {_spoken(data['ablation'])}; mean over images.{_beside(data)} "
        "Click a head.",
        controls=controls,
    )


def _spoken(ablation: str) -> str:
    said = {"zero": "zero", "mean": "its mean over images and positions", "resample": "what it is on another image"}
    return said.get(ablation, "its mean over images at each position")


def _beside(data: Data) -> str:
    """The chosen head's value under the other ablations."""
    own: Row = next((r for r in data["importance"] if (r["layer"], r["head"]) == _chosen(data)), {})
    others = [a for a in data["ablations"] if own.get(f"set to {a}") is not None]
    said = ", ".join(f"{short(own[f'set to {a}'])} set to {ABLATIONS.get(a, a)}" for a in others)
    return f" Head {data['layer']}.{data['head']}: {short(own['value'])}; {said}." if said else ""


def _strength(data: Data, theme: Theme) -> Any:
    rows: list[Row] = data["strengths"]
    if not rows:
        return card("Strength", html.P("Not measured in this run.", className="note"))
    there = [m for m in STRENGTH if rows[0].get(m) is not None]
    metric = data["strength"] if data["strength"] in there else there[0]
    name, unit = STRENGTH[metric]
    trend = next((t for t in data["trend"] if t["measure"] == metric), None)
    slope = ""
    if trend:
        slope = f" Trend over layers: {trend['slope']:+.3g} [{trend['low']:+.3g}, {trend['high']:+.3g}] a layer."
    return card(
        "Strength",
        strength_profile(
            rows,
            metric,
            theme,
            unit=unit,
            title=name,
            importance=importance_of(data),
            chosen=_chosen(data),
            lit=heads_of(data["lit"]),
        ),
        table(
            rows,
            {"layer": "layer", "head": "head", **{m: STRENGTH[m][0].lower() for m in there}},
            summary="The numbers",
        ),
        note=f"{name}, {unit}; mean over images and patch queries; coloured by importance.{slope} Draw a box around heads.",
        controls=picker(
            "strength", "What", [(m, STRENGTH[m][0]) for m in there], metric, "mean_distance_px", wide=True
        ),
    )


def _rings(data: Data, theme: Theme) -> Any:
    layer, head = _chosen(data)
    if not data["rings"]:
        return card("How far heads attend", html.P("Not measured in this run.", className="note"))
    lines = {}
    for other in sorted({(r["layer"], r["head"]) for r in data["all_rings"]}):
        part = [r for r in data["all_rings"] if (r["layer"], r["head"]) == other]
        lines[f"{other[0]}.{other[1]}"] = ([r["hop"] for r in part], [r["mass"] for r in part])
    options = [(str(i), f"Layer {i}") for i in sorted({r["layer"] for r in data["importance"]})]
    heads = [(str(i), f"Head {i}") for i in sorted({r["head"] for r in data["importance"]})]
    top = data["top_head"]
    controls = [
        picker("layer", "", options, str(layer), str(top[0])),
        picker("head", "", heads, str(head), str(top[1])),
    ]
    return card(
        f"How far head {layer}.{head} looks",
        bars(data["rings"], "hop", "mass", theme, x_title="hops, patches", y_title="share of attention", height=220),
        curve(lines, theme, x_title="hops", y_title="share of attention", strong=f"{layer}.{head}", height=220),
        note="Attention of patches on the ring of patches k hops away; each query counts equally. Below: the same beside all "
        "other heads.",
        controls=controls,
    )


def _drawn(data: Data) -> Any:
    if not data["maps"]:
        return card("What they draw", html.P("This run kept no maps.", className="note"))
    cells = [
        dcc.Link(
            [
                html.Img(src=data_url(colored(np.array(m))), alt=f"mean map of head {data['layer']}.{i}"),
                f"{data['layer']}.{i}",
            ],
            href=here(data, head=i, heads=None, map=None),
            className="map" + (" here" if i == data["head"] else ""),
        )
        for i, m in enumerate(data["maps"])
    ]
    return card(
        f"What the heads of layer {data['layer']} draw",
        html.Div(cells, className="maps"),
        note="Mean attention of a patch, recentred on the patch itself (the middle); brighter is more.",
    )


def _orders(rows: list[Row], x: str) -> dict[str, tuple[list[Any], list[Any]]]:
    """A line an order; random orders are one line, their mean."""
    lines: dict[str, dict[Any, list[float]]] = {}
    for row in rows:
        name = "random" if row["order"].startswith("random") else row["order"].replace("-", " ")
        lines.setdefault(name, {}).setdefault(row[x], []).append(row["value"])
    return {n: (list(at), [sum(v) / len(v) for v in at.values()]) for n, at in lines.items()}


def _pruning(data: Data, theme: Theme) -> Any:
    found = data["pruning"]
    if not found:
        command = html.Code(f"attlas vit pruning --model {data['model']}")
        return card("Heads together", html.P(["How many heads can go together: ", command], className="note"))
    spoken = found["metric"].replace("_", " ")
    within = found["summary"].get("heads_within_1_percent")
    said = f" Greedily, {within} heads go before it falls by 0.01." if within is not None else ""
    names = {"order": "order", "n_pruned": "heads gone", "layer": "layer", "head": "head", "value": spoken}
    return card(
        "Heads together",
        curve(_orders(found["rows"], "n_pruned"), theme, x_title="heads gone", y_title=spoken),
        table(found["rows"], names | {"low": "low", "high": "high"}, summary="The numbers, with 95 % intervals"),
        note=f"Heads set to {_spoken(found['ablation'])} one after another, on other images than those that chose the order."
        f"{said}",
    )


def _tokens(data: Data, theme: Theme) -> Any:
    found = data["tokens"]
    if not found:
        command = html.Code(f"attlas vit tokens --model {data['model']}")
        return card("Patches removed", html.P(["Which patches are needed: ", command], className="note"))
    spoken = found["metric"].replace("_", " ")
    options = [(str(layer), f"layer {layer}") for layer in found["layers"]]
    names = {"order": "order", "fraction": "share removed", "value": spoken, "low": "low", "high": "high"}
    return card(
        "Patches removed",
        curve(_orders(found["rows"], "fraction"), theme, x_title="share removed", y_title=spoken),
        table(found["rows"], names, summary="The numbers, with 95 % intervals"),
        note="Patches leave as tokens: those that receive least attention first, most first, or at random.",
        controls=picker("before", "Before", options, str(found["before"]), str(found["layers"][0])),
    )


def measure_name(measure: str) -> str:
    """ "zero:accuracy_drop" → "zero: accuracy drop", in words that may wrap."""
    ablation, _, metric = measure.partition(":")
    return f"{ABLATIONS.get(ablation, ablation)}: {metric.replace('_', ' ')}"


def _agreement(data: Data) -> Any:
    if not data["agreement"]:
        return None
    rows = [{**r, "first": measure_name(r["first"]), "second": measure_name(r["second"])} for r in data["agreement"]]
    names = {"first": "measure", "second": "and", "spearman": "Spearman", "low": "low", "high": "high"}
    return card(
        "Do the measures agree?",
        table(rows, names, summary="Pairs of measures", open_=True),
        note="Rank correlation over heads; 95 % intervals from resampled images.",
    )


def _rollout(data: Data, theme: Theme) -> Any:
    found = (data["tokens"] or {}).get("rollout")
    if not found:
        return None
    rows = [r for r in found if not r["method"].startswith("random")]
    shown = [{**r, "value": r["gain"], "low": r["gain_low"], "high": r["gain_high"]} for r in rows]
    return card(
        "Does attention say what is needed?",
        bars(shown, "method", "value", theme, group="test", x_title="ranking of patches", y_title="gain over chance"),
        note="Area gained over random orders when patches go by a ranking (deletion) or stay by it (insertion); 0 is chance.",
    )
