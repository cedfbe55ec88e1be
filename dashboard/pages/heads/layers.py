"""Layers: how each head attends, what its maps are made of, and how much each module does."""

from __future__ import annotations

from typing import Any

from dash import html

from attlas.dashboard.components import bars, card, columns, curve, empty, heading, heatmap, metric_cards, picker, table
from attlas.dashboard.page import Data, Page, Params, integer
from attlas.dashboard.pages.heads.metrics import head_rows, named
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme

_QUANTILES = ("q05", "q25", "q50", "q75", "q95")


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Rows of the newest entropy and redundancy runs of a model."""
    model = params.get("model")
    entropy = reader.pick("entropy", params.get("run"), model)
    model = model or (entropy.model.name if entropy else None)
    redundancy = reader.pick("redundancy", params.get("run"), model)
    anatomy = reader.pick("anatomy", params.get("run"), model)
    model = model or (anatomy.model.name if anatomy else None)
    heads, there = head_rows(reader, entropy, anatomy)
    metric = params.get("metric")
    return {
        "model": model,
        "metric": metric if metric in there else (there[0] if there else None),
        "metrics": there,
        "layer": integer(params, "layer"),
        "entropy_run": entropy.id if entropy else None,
        "anatomy_run": anatomy.id if anatomy else None,
        "n_queries": entropy.summary.get("n_queries") if entropy else None,
        "summary": entropy.summary if entropy else {},
        "heads": heads,
        "redundancy_run": redundancy.id if redundancy else None,
        "n_tokens": redundancy.summary.get("n_tokens") if redundancy else None,
        "redundancy": reader.rows(redundancy, "redundancy", ("layer", "module")),
    }


def view(data: Data, theme: Theme) -> Any:
    """The heads' map with its metric picker, then redundancy."""
    lead = "How sharply each head attends, where it looks, and how much each module turns the residual stream."
    title = f"Layers of {data['model']}" if data["model"] else "Layers"
    return html.Div(
        [
            heading(title, lead),
            _numbers(data),
            _entropy(data, theme),
            _redundancy(data, theme),
        ]
    )


def _numbers(data: Data) -> Any:
    s = data["summary"]
    if not s:
        return None
    return metric_cards(
        [
            ("Mean entropy", s.get("mean_entropy_nats"), "nats"),
            ("Sharpest head", s.get("sharpest_head"), "layer.head"),
            (
                "Induction head",
                s.get("induction_head"),
                f"score {s['induction_score']:.2f}" if s.get("induction_score") else "",
            ),
            ("Previous-token head", s.get("previous_token_head"), "layer.head"),
            ("Queries", data["n_queries"], "measured"),
        ]
    )


def _entropy(data: Data, theme: Theme) -> Any:
    heads: list[Row] = data["heads"]
    if not heads:
        where = f" of {data['model']}" if data["model"] else ""
        return empty(f"No entropy{where} yet", "Measure how every head attends:", "attlas entropy --model gpt2-mini")
    metric = data["metric"]
    name, unit, meaning = named(metric)
    choose = picker("metric", "Metric", [(m, named(m)[0]) for m in data["metrics"]], metric, data["metrics"][0])
    layers = sorted({row["layer"] for row in heads})
    by_layer = {
        "mean of heads": (layers, [_mean([r[metric] for r in heads if r["layer"] == layer]) for layer in layers]),
        "highest head": (layers, [_extreme(heads, layer, metric, max) for layer in layers]),
        "lowest head": (layers, [_extreme(heads, layer, metric, min) for layer in layers]),
    }
    names = {"layer": "layer", "head": "head", **{m: named(m)[0].lower() for m in data["metrics"]}}
    names |= {"label": "label"} if heads[0].get("label") else {}
    names |= {q: f"entropy {q}" for q in _QUANTILES if q in heads[0]}
    return html.Div(
        [
            columns(
                card(
                    name,
                    heatmap(
                        heads,
                        metric,
                        theme,
                        unit=unit,
                        pick=f"head,layer,model={data['model']}",
                        path="/head",
                        text="label" if metric == "label_score" else None,
                    ),
                    table(heads, names, summary="The numbers, with quantiles of entropy"),
                    note=f"{meaning} Unit: {unit}. Click a head to open it.",
                    controls=choose,
                ),
                card(
                    "Over depth",
                    curve(by_layer, theme, x_title="layer", y_title=f"{name.lower()}, {unit}"),
                    note=f"{name} of each layer's heads.",
                ),
            )
        ]
    )


def _mean(values: list[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def _extreme(heads: list[Row], layer: int, metric: str, which: Any) -> float | None:
    there = [r[metric] for r in heads if r["layer"] == layer and r[metric] is not None]
    return which(there) if there else None


def _redundancy(data: Data, theme: Theme) -> Any:
    rows: list[Row] = data["redundancy"]
    if not rows:
        where = f" of {data['model']}" if data["model"] else ""
        return empty(f"No redundancy scores{where} yet", "Score every layer:", "attlas redundancy --model gpt2-mini")
    return columns(
        card(
            "Redundancy",
            bars(rows, "layer", "score", theme, group="module", x_title="layer", y_title="1 − cosine"),
            table(
                rows,
                {"layer": "layer", "module": "module", "score": "score", "low": "low", "high": "high"},
                summary="The numbers",
            ),
            note=f"1 − cosine of a module's input and output, {data['n_tokens'] or 0:,} tokens, 95 % bootstrap intervals. "
            "A low bar marks a module that does little.",
        ),
        card(
            "By module",
            heatmap(_ranked(rows), "score", theme, x="layer", y="module", unit="1 − cosine", height=210),
            html.P(_sentence(rows), className="note"),
            note="The same scores, so that depths can be compared.",
        ),
    )


def _ranked(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.get("score") is not None]


def _sentence(rows: list[Row]) -> list[Any]:
    best = sorted(_ranked(rows), key=lambda r: r["score"])[:3]
    names = ", ".join(f"{r['module']} {r['layer']} ({r['score']:.3f})" for r in best)
    return (
        [f"Least is done by {names}. ", html.Code("attlas prune"), " measures what dropping them costs."]
        if names
        else []
    )


PAGE = Page("/layers", "Layers", data, view)
