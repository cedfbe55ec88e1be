"""Evaluation: an autoencoder beside its controls, each number with its interval and its definition."""

from __future__ import annotations

from typing import Any

from dash import html

from attlas.dashboard.components import bars, card, columns, empty, heading, histogram, metric_cards, picker, table
from attlas.dashboard.page import Data, Page, Params
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme

SUBJECTS = {
    "sae": "SAE",
    "lorsa": "Lorsa",
    "pca": "PCA",
    "random_dictionary": "random dictionary",
    "shuffled_weights": "shuffled weights",
}


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Metrics of the newest (or the named) evaluation; the chosen metric for every subject."""
    of_layers = reader.runs("lorsa_eval")
    named = next((r for r in of_layers if r.id == params.get("run")), None)
    run = named or reader.pick("sae_eval", params.get("run"), params.get("model")) or next(iter(of_layers), None)
    rows = reader.rows(run, "evaluation")
    if run is None or not rows:
        return {"run": None, "model": params.get("model")}
    controlled = [m for m in dict.fromkeys(r["metric"] for r in rows) if sum(r["metric"] == m for r in rows) > 1]
    metrics = controlled or list(dict.fromkeys(r["metric"] for r in rows))
    first = "ce_recovered" if "ce_recovered" in metrics else metrics[0]
    metric = params.get("metric") if params.get("metric") in metrics else first
    parent = reader.made_from(run, "lorsa", "sae")
    return {
        "run": run.id,
        "model": run.model.name,
        "hook": parent.summary.get("hook") if parent else None,
        "runs": [
            {"id": r.id, "model": r.model.name, "created": r.created} for r in (*reader.runs("sae_eval"), *of_layers)
        ],
        "metric": metric,
        "default_metric": first,
        "metrics": metrics,
        "rows": rows,
        "density": reader.rows(run, "density", ("bin_left",)) if "density" in run.tables else [],
    }


def view(data: Data, theme: Theme) -> Any:
    """Headline numbers, the controls, every metric with its definition, densities."""
    lead = "How faithful an autoencoder is, beside controls that should do worse. Intervals: 95 %, over sequences."
    if not data["run"]:
        return html.Div(
            [heading("Evaluation", lead), empty("No evaluation yet", "Evaluate the newest autoencoder:", "attlas eval")]
        )
    rows: list[Row] = data["rows"]
    mine = {r["metric"]: r for r in rows if r["subject"] == rows[0]["subject"]}
    runs = [(r["id"], f"{r['model']} · {r['created'][:16].replace('T', ' ')}") for r in data["runs"]]
    switch = picker("run", "", runs, data["run"], runs[0][0]) if len(runs) > 1 else None
    chosen = [r | {"who": SUBJECTS.get(r["subject"], r["subject"])} for r in rows if r["metric"] == data["metric"]]
    unit = chosen[0]["unit"] or data["metric"].replace("_", " ")
    definition = chosen[0]["description"] if chosen else ""
    choose = picker(
        "metric", "Metric", [(m, m.replace("_", " ")) for m in data["metrics"]], data["metric"], data["default_metric"]
    )
    return html.Div(
        [
            heading("Evaluation", f"{data['hook'] or 'An autoencoder'} of {data['model']}. {lead}", switch),
            metric_cards([_number(mine, "l0", "L0"), _number(mine, "explained_variance", "Explained variance"),
                          _number(mine, "ce_recovered", "CE recovered"), _number(mine, "dead_fraction", "Dead")]),
            columns(
                card(
                    "Beside the controls" if "pca" in {r["subject"] for r in rows} else "Side by side",
                    bars(chosen, "who", "value", theme, x_title=" ", y_title=unit),
                    html.P(" ".join(f"{r['who']}: {r['note']}." for r in chosen if r["note"]), className="note"),
                    note=f"{definition[:1].upper()}{definition[1:]}.",
                    controls=choose,
                ),
                _densities(data, theme),
            ),
            card("Every metric", _table(rows)),
        ]
    )  # fmt: skip


def _number(mine: dict[str, Row], metric: str, title: str) -> tuple[str, Any, str]:
    row = mine.get(metric, {})
    interval = (
        f"{row['low']:.3f} – {row['high']:.3f}" if row.get("low") is not None and row.get("high") is not None else ""
    )
    return title, row.get("value"), interval


def _densities(data: Data, theme: Theme) -> Any:
    bins = [b for b in data["density"] if b["bin_left"] is not None and b["bin_right"] is not None]
    dead = sum(b["count"] for b in data["density"] if b["bin_right"] is None)
    if not bins:
        return None
    width = bins[0]["bin_right"] - bins[0]["bin_left"]
    figure = histogram([b["bin_left"] for b in bins], width, [b["count"] for b in bins], theme,
                       x_title="log10 density", y_title="features", log=False)  # fmt: skip
    return card(
        "How often features fire", figure, note=f"Share of tokens a feature is active on. {dead} fired on none."
    )


def _table(rows: list[Row]) -> Any:
    shown = [
        r | {"subject": SUBJECTS.get(r["subject"], r["subject"]), "metric": r["metric"].replace("_", " ")} for r in rows
    ]
    names = {"subject": "subject", "metric": "metric", "value": "value", "low": "low", "high": "high", "unit": "unit",
             "n_tokens": "tokens", "description": "definition"}  # fmt: skip
    return table(shown, names, summary="Table", open_=True)


PAGE = Page("/evaluation", "Evaluation", data, view)
