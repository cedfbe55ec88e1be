"""Circuit runs of the workspace: patching, direct logit attribution, traces, QK attribution and faithfulness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from dash import dcc, html

from attlas.dashboard.components import bars, card, columns, curve, empty, graph, heatmap, metric_cards, table
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.page import Data, Params
from attlas.dashboard.pages.circuit.attention import pairs_map
from attlas.dashboard.pages.circuit.graph import draw, plain
from attlas.dashboard.pages.circuit.view import here, over_tokens
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.workspace import Run

KINDS = {
    "patching": "patching",
    "dla": "direct logit attribution",
    "circuit": "trace",
    "qk": "QK attribution",
    "faithfulness": "faithfulness",
}
MOST_RUNS = 40


def saved_data(reader: WorkspaceReader, params: Params) -> Data:
    """The list of runs, and the tables of the one in the URL (else the newest)."""
    model = params.get("model")
    runs = [run for run in reader.runs(model=model) if run.kind in KINDS]
    run = next((r for r in reader.runs() if r.id == params.get("run") and r.kind in KINDS), runs[0] if runs else None)
    listed = [
        {
            "run": r.id,
            "what": KINDS[r.kind],
            "model": r.model.name,
            "settings": _settings(r.config),
            "made": r.created[:16],
        }
        for r in runs[:MOST_RUNS]
    ]
    found: Data = {
        "runs": listed,
        "n_runs": len(runs),
        "run": run.id if run else None,
        "kind": run.kind if run else None,
    }
    if run is None:
        return found
    found |= {"model": run.model.name, "summary": run.summary, "config": run.config}
    found["tables"] = {name: reader.rows(run, name) for name in run.tables}
    if run.kind == "circuit":
        found["graph"] = _graph(reader, run)
    return found


def _settings(config: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in config.items() if isinstance(v, (str, int, float)) and k != "seed")


def _graph(reader: WorkspaceReader, run: Run) -> dict[str, Any] | None:
    from attlas.analyses.circuits.graph import load_json

    name = "graph/graph.json"
    if name not in run.files and not (reader.workspace.folder(run) / name).is_file():
        return None
    graph = load_json(reader.workspace.file(run, name))
    return plain(reader, graph, told_by_hash(reader, graph.saes))


def told_by_hash(reader: WorkspaceReader, saes: Mapping[int, str]) -> dict[int, str]:
    """Layer → the newest run that interprets the autoencoder of that hash."""
    by_hash = {str(run.summary.get("hash")): run.id for run in reversed(reader.runs("sae"))}
    found = {layer: reader.features_run(by_hash.get(hash)) for layer, hash in saes.items()}
    return {layer: run.id for layer, run in found.items() if run is not None}


def saved_view(data: Data, theme: Theme) -> Any:
    """The chosen run, and all others."""
    saved = data["saved"]
    if saved["run"] is None:
        return empty("No circuit runs yet", "Make one, for example:", f"attlas circuit trace --model {data['lm']}")
    drawn: dict[str, Any] = {
        "patching": _patching,
        "dla": _dla,
        "circuit": _trace,
        "qk": _qk,
        "faithfulness": _faithfulness,
    }
    return html.Div([drawn[saved["kind"]](data, theme), _list(data)])


def _list(data: Data) -> Any:
    saved = data["saved"]
    rows = [
        {**r, "run": dcc.Link(r["run"], href=here(data, run=r["run"], view="saved", node=None))} for r in saved["runs"]
    ]
    names = {"run": "run", "what": "what", "model": "model", "settings": "settings", "made": "made (UTC)"}
    more = f" The newest {MOST_RUNS} of {saved['n_runs']}." if saved["n_runs"] > MOST_RUNS else ""
    return card(
        "Circuit runs of this workspace",
        table(rows, names, summary="Runs", open_=True),
        note="Written by attlas circuit." + more,
    )


def _patching(data: Data, theme: Theme) -> Any:
    saved = data["saved"]
    rows: list[Row] = saved["tables"]["patching"]
    config, s = saved["config"], saved["summary"]
    by = config.get("by", "head")
    unit = s.get("unit", "")
    tokens = s.get("tokens") or []
    if by == "position" and tokens:
        figure = graph(_by_position(rows, tokens, unit, theme), "effect by layer and position")
    elif by in ("head", "position"):
        figure = heatmap(rows, "effect", theme, x=by, unit=unit, signed=True)
    else:
        named = [{**r, "place": _place(r, by)} for r in rows]
        figure = bars(named, "place", "effect", theme, x_title="place", y_title=f"effect, {unit}")
    names = {k: k for k in ("hook", "head", "position", "feature", "effect", "low", "high", "estimate")}
    numbers = metric_cards(
        [
            ("Base", s.get("base"), unit),
            ("Source", s.get("source"), unit),
            ("Estimate and exact", s.get("estimate_pearson"), "Pearson, over places"),
            ("Prompts", s.get("n_prompts"), ""),
        ]
    )
    ordered = sorted(rows, key=lambda r: -abs(r["effect"]))
    note = (
        f"Change of the metric ({unit}) when one place is set to “{config.get('mode')}” ({config.get('direction')}); "
        f"{saved['model']}, run {saved['run']}."
    )
    return card(
        f"Patching by {by}",
        numbers,
        figure,
        table(ordered, names, summary="The numbers, with 95 % intervals"),
        note=note,
    )


def _by_position(rows: list[Row], tokens: list[str], unit: str, theme: Theme) -> go.Figure:
    layers = sorted({r["layer"] for r in rows})
    cells = {(r["layer"], r["position"]): r["effect"] for r in rows}
    trace = go.Heatmap(
        z=[[cells.get((layer, i)) for i in range(len(tokens))] for layer in layers],
        y=[f"layer {layer}" for layer in layers],
        zmid=0,
        colorscale=theme.scale(True),
        hovertemplate=f"%{{y}}, %{{x}}<br><b>%{{z:.3g}}</b> {unit}<extra></extra>",
    )
    return over_tokens(trace, tokens, theme, 120 + 30 * len(layers))


def _place(row: Row, by: str) -> str:
    if by == "layer":
        return f"layer {row['layer']}"
    return f"{row['layer']}/" + ("error" if row["feature"] == -2 else str(row["feature"]))


def _dla(data: Data, theme: Theme) -> Any:
    saved = data["saved"]
    rows: list[Row] = saved["tables"]["dla"]
    lens: list[Row] = saved["tables"].get("logit_lens", [])
    heads = [r for r in rows if r["kind"] == "head"]
    ordered = sorted(rows, key=lambda r: -abs(r["contribution"]))
    first = heatmap(heads, "contribution", theme, unit="logits", signed=True) if heads else None
    names = {"name": "part", "contribution": "logits", "low": "low", "high": "high"}
    if rows and "right" in rows[0]:  # older runs have the difference alone
        names |= {"right": "on right", "wrong": "on wrong", "looks_at": "looks at", "label": "label"}
    parts = card(
        "What each part adds",
        first,
        bars(ordered[:15], "name", "contribution", theme, x_title="part", y_title="logits"),
        table(ordered, names, summary="The numbers, with 95 % intervals"),
        note=f"Parts of the logit difference, the final norm frozen; {saved['model']}, run {saved['run']}.",
    )
    if not lens:
        return parts
    lens = sorted(lens, key=lambda r: r["layer"])
    series = {"logit difference": ([r["layer"] for r in lens], [r["value"] for r in lens])}
    read = card(
        "Logit lens",
        curve(series, theme, x_title="layers done", y_title="logits"),
        table(lens, {k: k for k in ("layer", "value", "low", "high")}, summary="The numbers, with 95 % intervals"),
        note="The same sum cut off after each layer, with the final run's scale.",
    )
    return columns(parts, read)


def _trace(data: Data, theme: Theme) -> Any:
    graph = data["saved"].get("graph")
    if graph is None:
        return card("Trace", html.P("The graph's file is gone from the run's folder.", className="note"))
    return html.Div([_prompt(graph["tokens"]), draw(data, graph)])


def _prompt(tokens: list[str]) -> Any:
    """A saved run has its own prompt, not the page's."""
    spans = [html.Span(visible(token), className="token") for token in tokens]
    return card("Prompt of this run", html.P(spans, className="tokens token-links"))


def _qk(data: Data, theme: Theme) -> Any:
    saved = data["saved"]
    rows: list[Row] = saved["tables"]["qk"]
    c, s = saved["config"], saved["summary"]
    tokens = c.get("tokens") or []
    dest, src = (
        f"{i} “{tokens[i]}”" if 0 <= i < len(tokens) else str(i) for i in (c.get("dest", -1), c.get("src", -1))
    )
    numbers = metric_cards(
        [
            ("Score", s.get("score"), "the model's, before the softmax"),
            ("Sum of all pairs", sum(r["score"] for r in rows), "all rows of the table"),
            ("Attention", s.get("pattern"), ""),
        ]
    )
    names = {"dest": "term at the destination", "src": "term at the source", "score": "part of the score"}
    return card(
        f"Head {c.get('layer')}.{c.get('head')}, {dest} → {src}",
        numbers,
        pairs_map(rows, theme),
        table(rows[:40], names, summary="Pairs of terms, the 40 largest", open_=True),
        note=f"{saved['model']}, run {saved['run']}.",
    )


def _faithfulness(data: Data, theme: Theme) -> Any:
    saved = data["saved"]
    rows = [r for r in saved["tables"]["faithfulness"] if r["recovered"] is not None]
    draws = {k: sorted(r["recovered"] for r in rows if r["kept"].startswith(k)) for k in ("random", "same places")}
    spread = "; ".join(
        f"{name}: {len(found)} draws, median {np.median(found):.1%}, {found[0]:.1%} to {found[-1]:.1%}"
        for name, found in draws.items()
        if found
    )
    names = {k: k for k in ("kept", "n_units", "metric", "recovered", "low", "high")}
    note = (
        "Share of the metric recovered with only these units kept, 95 % intervals over prompts; random: circuits "
        "of as many units anywhere in each layer; same places: at the circuit's own layers and positions. "
        f"{spread}{'. ' if spread else ''}"
        f"{saved['model']}, run {saved['run']}."
    )
    return card(
        "Faithfulness",
        bars(rows, "kept", "recovered", theme, x_title="units kept", y_title="share recovered"),
        table(rows, names, summary="The numbers", open_=True),
        note=note,
    )
