"""Training: the curve of every autoencoder, running ones included; sweeps as a Pareto table."""

from __future__ import annotations

import time
from typing import Any

from dash import html

from attlas.dashboard.components import card, columns, curve, empty, heading, metric_cards, picker, table
from attlas.dashboard.page import Data, Page, Params
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.saes.training.history import live_runs

LIVE_SECONDS = 120  # a curve that has not grown for so long belongs to a run that stopped
METRICS = {
    "explained_variance": "explained variance",
    "loss": "loss",
    "l0": "L0, features a token",
    "dead_fraction": "dead features, fraction",
    "tokens_per_second": "tokens/s",
    "data_fraction": "data's share of time",
    "model_fraction": "model's share of time",
    "sae_fraction": "SAEs' share of time",
    "learning_rate": "learning rate",
}


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Curves of the chosen (or newest) run, or of what trains now; the newest sweep."""
    running = [r for r in live_runs(reader.path) if time.time() - r.path.stat().st_mtime < LIVE_SECONDS]
    runs = sorted(
        [*reader.runs("sae", params.get("model")), *reader.runs("lorsa", params.get("model"))],
        key=lambda r: r.created,
        reverse=True,
    )
    named = next((r for r in runs if r.kind == "lorsa" and r.id == params.get("run")), None)
    run = named or reader.pick("sae", params.get("run"), params.get("model")) or (runs[0] if runs else None)
    sweep = reader.pick("sae_sweep", params.get("run"), params.get("model"))
    rows = reader.curves(run, "training", "tokens", ("hook",))
    metric = params.get("metric") if params.get("metric") in METRICS else "explained_variance"
    return {
        "live": bool(running),
        "running": [{"name": live.key, "rows": live.rows[-2000:]} for live in running],
        "run": run.id if run else None,
        "model": run.model.name if run else params.get("model"),
        "runs": [
            {"id": r.id, "hook": r.summary.get("hook"), "model": r.model.name, "created": r.created} for r in runs
        ],
        "summary": run.summary if run else {},
        "config": run.config if run else {},
        "metric": metric,
        "rows": rows,
        "pareto": reader.rows(sweep, "pareto", ("hook", "l0")),
        "sweep_rows": reader.curves(sweep, "training", "tokens", ("sae", "hook")),
    }


def view(data: Data, theme: Theme) -> Any:
    """Running curves first, then the chosen run's, then the sweep."""
    lead = "Curves of sparse autoencoders, as they train and after."
    if not data["run"] and not data["running"] and not data["pareto"]:
        return html.Div(
            [heading("Training", lead), empty("No autoencoder yet", "Train one:", "attlas train --model gpt2-mini")]
        )
    runs = [(r["id"], f"{r['hook']} · {r['created'][:16].replace('T', ' ')}") for r in data["runs"]]
    switch = picker("run", "", runs, data["run"], runs[0][0]) if len(runs) > 1 and data["run"] else None
    return html.Div(
        [
            heading(
                "Training",
                lead,
                picker("metric", "", list(METRICS.items()), data["metric"], "explained_variance"),
                switch,
            ),
            *[_curves(f"Now: {live['name']}", live["rows"], data["metric"], theme) for live in data["running"]],
            _finished(data, theme),
            _pareto(data["pareto"], theme),
            _curves("Curves of the sweep", data["sweep_rows"], data["metric"], theme) if data["sweep_rows"] else None,
        ]
    )


def _series(rows: list[Row], metric: str) -> dict[str, tuple[list[Any], list[Any]]]:
    """One line an autoencoder: by its own name where there is one (a sweep has several a hook), else by its hook."""
    key = "sae" if rows and "sae" in rows[0] else "hook"
    names = dict.fromkeys(str(r.get(key)) for r in rows)
    return {
        name: (
            [r["tokens"] for r in rows if str(r.get(key)) == name],
            [r.get(metric) for r in rows if str(r.get(key)) == name],
        )
        for name in names
    }


def _curves(title: str, rows: list[Row], metric: str, theme: Theme) -> Any:
    figure = curve(_series(rows, metric), theme, x_title="tokens", y_title=METRICS[metric], height=320)
    return card(title, figure)


def _finished(data: Data, theme: Theme) -> Any:
    s = data["summary"]
    if not data["run"]:
        return None
    return html.Div(
        [
            metric_cards(
                [
                    ("Hook", s.get("hook"), data["model"]),
                    ("Architecture", s.get("arch"), f"{s.get('d_in')} → {s.get('d_sae')} features"),
                    ("Explained variance", s.get("explained_variance"), "last batches"),
                    ("L0", s.get("l0"), "features a token"),
                    ("Dead", s.get("dead_fraction"), "fraction"),
                    ("Tokens", s.get("tokens"), "trained on"),
                ]
            ),
            columns(
                _curves("Curve", data["rows"], data["metric"], theme),
                card(
                    "Configuration",
                    table(
                        _config(data["config"]),
                        {"name": "setting", "value": "value"},
                        summary="Every setting",
                        open_=True,
                    ),
                ),
            ),
        ]
    )


def _setting(value: Any) -> str:
    if value is None or value == []:
        return "—"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _config(config: dict[str, Any]) -> list[Row]:
    return [{"name": k, "value": _setting(v)} for k, v in config.items()]


def _pareto(rows: list[Row], theme: Theme) -> Any:
    if not rows:
        return None
    series: dict[str, tuple[list[Any], list[Any]]] = {}
    for hook in dict.fromkeys(r["hook"] for r in rows):
        part = [r for r in rows if r["hook"] == hook]
        series[str(hook)] = ([r["l0"] for r in part], [r["explained_variance"] for r in part])
    names = {
        "hook": "hook",
        "arch": "architecture",
        "k": "k",
        "sparsity": "λ",
        "d_sae": "width",
        "seed": "seed",
        "l0": "L0",
        "explained_variance": "explained variance",
        "ce_recovered": "CE recovered",
        "dead_fraction": "dead",
        "on_front": "on the front",
    }
    return columns(
        card(
            "Sweep", curve(series, theme, x_title="L0", y_title="explained variance", height=300), note="Held-out data."
        ),
        card("Every autoencoder of the sweep", table(rows, names, summary="Table", open_=True)),
    )


PAGE = Page("/training", "Training", data, view)
