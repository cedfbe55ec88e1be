"""Attention health: heads over training, whose keys layers share, what windows cost, trackers, and collapse in small."""

from __future__ import annotations

from typing import Any

from dash import html

from attlas.dashboard.components import card, columns, heading, heatmap, picker, table
from attlas.dashboard.page import Data, Page, Params, integer
from attlas.dashboard.pages.health import view as views
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme

# column of timeline, and of tracker → (name, unit)
TIMELINE = {
    "induction": ("Induction", "share of attention"),
    "entropy": ("Entropy", "nats"),
    "normalized": ("Normalised entropy", "of log n"),
    "previous_token": ("Previous token", "share of attention"),
    "duplicate_token": ("Duplicate token", "share of attention"),
    "sink_mass": ("Sink mass", "share of attention"),
    "max_weight": ("Largest weight", "share of attention"),
    "lower_bound": ("Lower bound", "nats"),
}
_KINDS = ("entropy", "timeline", "selection", "window_loss", "cost", "tracker")


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Rows of the newest run of each kind, of the chosen model when there is one."""
    model = params.get("model")
    runs = {kind: reader.pick(kind, params.get("run"), model) for kind in _KINDS}
    collapse = reader.pick("collapse", params.get("run"))
    timeline = reader.curves(runs["timeline"], "timeline", "step", ("layer", "head"))
    there = [name for name in TIMELINE if any(row.get(name) is not None for row in timeline)]
    metric = params.get("metric")
    coverage = reader.rows(runs["selection"], "selection_coverage", ("k", "selector", "layer"))
    widths = sorted({row["k"] for row in coverage})
    k = integer(params, "k")
    parts = reader.rows(runs["selection"], "selection_partition", ("n_full", "layer"))
    shown = k if k in widths else (widths[0] if widths else None)
    most = max((row["n_full"] for row in parts), default=1)
    full = integer(params, "full")
    return {
        "model": model,
        "runs": {kind: run.id if run else None for kind, run in {**runs, "collapse": collapse}.items()},
        "models": {kind: run.model.name if run else None for kind, run in runs.items()},
        "entropy": reader.rows(runs["entropy"], "head_entropy", ("layer", "head")),
        "metric": metric if metric in there else (there[0] if there else None),
        "metrics": there,
        "timeline": timeline,
        "k": shown,
        "widths": widths,
        "coverage": [row for row in coverage if row["k"] == shown],
        "full": full if full is not None and 1 <= full <= most else max(1, round(most / 4)),
        "most_full": most,
        "partition": [row for row in parts if row["k"] == shown],
        "window_loss": reader.rows(runs["window_loss"], "window_loss", ("window", "layer")),
        "cost": reader.rows(runs["cost"], "cost", ("seq_len", "layer", "module")),
        "cost_summary": runs["cost"].summary if runs["cost"] else {},
        "tracker": reader.curves(runs["tracker"], "tracker", "step", ("layer", "head")),
        "alerts": reader.rows(runs["tracker"], "tracker_alerts", ("step", "layer", "head")),
        "collapse": views.mean_by_step(reader.rows(collapse, "collapse", ("model", "method", "seed", "step"))),
        "collapse_runs": reader.rows(collapse, "collapse_runs", ("model", "method", "seed")),
    }


def view(data: Data, theme: Theme) -> Any:
    """One section a kind of run."""
    lead = "Heads over training, entropy and its bound, and what attention layers could do without."
    title = f"Attention health of {data['model']}" if data["model"] else "Attention health"
    pair = [part for part in (_window_loss(data, theme), _cost(data, theme)) if part is not None]
    return html.Div(
        [
            heading(title, lead),
            _now(data, theme),
            _timeline(data, theme),
            _tracker(data, theme),
            _selection(data, theme),
            columns(*pair) if pair else None,
            _collapse(data, theme),
            _absent(data),
        ]
    )


def _now(data: Data, theme: Theme) -> Any:
    """Heads as `attlas entropy` found them."""
    rows = data["entropy"]
    if not rows:
        return None
    names = {"layer": "layer", "head": "head", "entropy": "entropy, nats", "low": "from", "high": "to"}
    names |= {"normalized": "of log n", "lower_bound": "bound, nats", "sink_mass": "on the first position"}
    lowest = min(rows, key=lambda row: row["normalized"])
    said = f"Lowest: head {lowest['layer']}.{lowest['head']}, {lowest['normalized']:.2f} of log n."
    return card(
        "Entropy of each head",
        heatmap(
            rows,
            "normalized",
            theme,
            unit="of log n",
            pick=f"head,layer,model={data['models']['entropy']}",
            path="/head",
        ),
        html.P(said, className="note"),
        table(rows, names, summary="The numbers"),
        note=f"{data['models']['entropy']}: mean entropy of a query's attention, as a part of that of even attention; a head "
        "near 0 looks at one token. 95 % intervals over sequences.",
        span=2,
    )


def _absent(data: Data) -> Any:
    """What has not been measured, and the command that does; nothing where everything has."""
    model = data["model"] or data["models"]["entropy"] or "gpt2-mini"
    ways = {
        "entropy": ("Entropy of each head", "How sharply does each head attend?", f"attlas entropy --model {model}"),
        "timeline": (
            "Heads over checkpoints",
            "Measure a folder of them:",
            "attlas entropy timeline --checkpoints DIR",
        ),
        "tracker": (
            "Tracked training",
            "Watch one with attlas.EntropyTracker, and keep it:",
            'tracker.save(attlas.Workspace("workspace"), Ref("my-model", "0"))',
        ),
        "coverage": (
            "Selection layers",
            "Whose keys could a layer share?",
            f"attlas entropy selection --model {model}",
        ),
        "window_loss": (
            "Window loss",
            "What does a layer lose with sinks and a window alone?",
            f"attlas entropy windows --model {model}",
        ),
        "cost": (
            "Cost by length",
            "Attention against the feed-forward network, by length:",
            f"attlas entropy cost --model {model}",
        ),
        "collapse": (
            "Entropy collapse",
            "Train two small models until their entropy collapses, with σReparam beside them:",
            "attlas entropy collapse",
        ),
    }
    items = [
        html.Div([html.P([html.B(name), f". {why}"], className="note"), html.Pre(html.Code(command), tabIndex=0)])
        for kind, (name, why, command) in ways.items()
        if not data[kind]
    ]
    return card("Not measured yet", *items) if items else None


def _timeline(data: Data, theme: Theme) -> Any:
    if not data["timeline"]:
        return None
    name, unit = TIMELINE[data["metric"]]
    options = [(m, TIMELINE[m][0]) for m in data["metrics"]]
    choose = picker("metric", "Metric", options, data["metric"], data["metrics"][0])
    names = {"step": "step", "layer": "layer", "head": "head", **{m: TIMELINE[m][0].lower() for m in data["metrics"]}}
    nulls = [m for m in data["metrics"] if any(row.get(f"{m}_null") is not None for row in data["timeline"])]
    names |= {f"{m}_null": f"{TIMELINE[m][0].lower()}, null" for m in nulls}
    return card(
        f"{name} over checkpoints",
        views.heads_over_steps(data["timeline"], data["metric"], theme, unit, str(data["models"]["timeline"])),
        views.births(data["timeline"]),
        table(data["timeline"], names, summary="The numbers"),
        note=f"{data['models']['timeline']}, one line a head, the strongest named. Unit: {unit}. Click a point to open a head.",
        controls=choose,
        span=2,
    )


def _tracker(data: Data, theme: Theme) -> Any:
    rows = data["tracker"]
    if not rows:
        return None
    names = {"kind": "alert", "began": "began", "layer": "layer", "head": "head", "since": "since step"}
    names |= {"step": "at step", "value": "value", "threshold": "threshold"}
    alerts = data["alerts"]
    said = f"{sum(bool(a['began']) for a in alerts)} alerts began." if alerts else "No alert was raised."
    return card(
        "A tracked training",
        views.tracked(rows, alerts, theme),
        html.P(said, className="note"),
        table(alerts, names, summary="Alerts", open_=True),
        note=f"{data['models']['tracker']}: entropy of each layer, mean over its heads (lines) and the lowest head's (dashed), "
        "with the mean lower bound (dotted), nats. Triangles mark where alerts began.",
        span=2,
    )


def _selection(data: Data, theme: Theme) -> Any:
    rows = data["coverage"]
    if not rows:
        return None
    k = data["k"]
    choose = [picker("k", "Keys kept", [(str(w), str(w)) for w in data["widths"]], str(k), str(data["widths"][0]))]
    parts = data["partition"]
    best = None
    if parts:
        levels = [(str(n), str(n)) for n in range(1, data["most_full"] + 1)]
        default = str(max(1, round(data["most_full"] / 4)))
        chosen = [row for row in parts if row["n_full"] == data["full"]]
        best = card(
            "Best partition",
            views.partition(chosen, theme),
            views.partition_curve(parts, theme),
            note="Full layers read every key; a selecting one also chooses the keys that those following it read.",
            controls=picker("full", "Full layers", levels, str(data["full"]), default),
        )
    note = (
        f"{data['models']['selection']}: share of a layer's attention on the {k} keys that another layer looks at most."
    )
    matrix = heatmap(rows, "coverage", theme, x="layer", y="selector", unit="of its attention")
    return columns(card("Selection layers", matrix, note=note, controls=choose), best)


def _window_loss(data: Data, theme: Theme) -> Any:
    rows = data["window_loss"]
    if not rows:
        return None
    names = {
        "layer": "layer",
        "window": "window",
        "delta": "rise, nats",
        "low": "low",
        "high": "high",
        "n_units": "units",
    }
    return card(
        "Window loss",
        views.window_loss(rows, theme),
        table(views.named_layers(rows), names, summary="The numbers"),
        note=f"{data['models']['window_loss']}: rise of the loss when a layer sees {rows[0]['sinks']} first positions and a "
        "window alone; 95 % bootstrap intervals.",
    )


def _cost(data: Data, theme: Theme) -> Any:
    rows = data["cost"]
    if not rows:
        return None
    names = {
        "layer": "layer",
        "module": "module",
        "seq_len": "tokens",
        "seconds": "seconds",
        "low": "low",
        "high": "high",
    }
    names |= {"flops_projection": "FLOP, projections", "flops_mixing": "FLOP, mixing", "bytes": "bytes"}
    device, threads = data["cost_summary"].get("device"), data["cost_summary"].get("threads")
    return card(
        "Cost by length",
        views.cost(rows, theme),
        table(rows, names, summary="The numbers"),
        note=f"{data['models']['cost']}: median time a layer on {device} ({threads} threads), ms, with quartiles.",
    )


def _collapse(data: Data, theme: Theme) -> Any:
    if not data["collapse"]:
        return None
    names = {
        "model": "model",
        "method": "method",
        "seed": "seed",
        "first_loss": "first loss",
        "final_loss": "final loss",
    }
    names |= {
        "final_normalized": "entropy / log n",
        "collapsed_heads": "collapsed heads",
        "first_collapse": "since step",
    }
    figures = [
        card(
            "Entropy collapse: " + {"vit": "a small ViT", "lm": "a small language model"}.get(model, model),
            views.collapse([row for row in data["collapse"] if row["model"] == model], theme),
            note="Training loss above; mean entropy with its lower bound (dotted) below, nats. One line a seed.",
        )
        for model in dict.fromkeys(row["model"] for row in data["collapse"])
    ]
    return html.Div([columns(*figures), card("Trainings", table(data["collapse_runs"], names, open_=True))])


PAGE = Page("/health", "Health", data, view)
