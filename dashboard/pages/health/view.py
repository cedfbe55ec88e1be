"""Figures of attention health."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from dash import html
from plotly.subplots import make_subplots

from attlas.dashboard.components import graph
from attlas.dashboard.components.head_figures import birth
from attlas.dashboard.reader import Row
from attlas.dashboard.theme import Theme, style

_NAMED = 3
_CURVES = ("loss", "entropy", "lower_bound")


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def heads_over_steps(rows: Sequence[Row], metric: str, theme: Theme, unit: str, model: str) -> Any:
    """One line a head; those that end highest stand out and have a name."""
    heads: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        heads.setdefault((row["layer"], row["head"]), []).append(row)
    ranked = sorted(heads, key=lambda place: -(heads[place][-1].get(metric) or 0))
    strong = dict(zip(ranked[:_NAMED], theme.marks, strict=False))
    figure = go.Figure()
    for place in sorted(heads, key=lambda p: p in strong):
        part, color = heads[place], strong.get(place)
        to = {"layer": place[0], "head": place[1], "model": model, "metric": None}
        figure.add_scatter(
            x=[row["step"] for row in part],
            y=[row.get(metric) for row in part],
            customdata=[to] * len(part),
            name=f"{place[0]}.{place[1]}",
            mode="lines+markers",
            marker={"size": 6 if color else 4},
            line={"width": 2.5 if color else 1, "color": color or theme.muted},
            opacity=1 if color else 0.45,
            showlegend=color is not None,
            hovertemplate=f"head {place[0]}.{place[1]}, step %{{x}}<br><b>%{{y:.4g}}</b><extra></extra>",
        )
    style(figure, theme, 340)
    figure.update_xaxes(title_text="step", showgrid=False)
    figure.update_yaxes(title_text=unit)
    return graph(figure, f"{metric} of every head over checkpoints", pick="*", path="/head")


def births(rows: Sequence[Row]) -> Any:
    """A sentence on the heads that became induction heads, each with its score and null at the end."""
    heads: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        heads.setdefault((row["layer"], row["head"]), []).append(row)
    if not any(row.get("induction_null") is not None for row in rows):
        return None
    found = [(place, birth(part, "induction"), part[-1]) for place, part in heads.items()]
    born = sorted((f for f in found if f[1]), key=lambda f: -f[2]["induction"])
    if not born:
        return html.P("No head's induction score stays above its null.", className="note")
    told = [
        f"{layer}.{head} between steps {b[0]:,} and {b[1]:,} "
        f"(at the end {row['induction']:.3f}, null {row['induction_null']:.3f})"
        for (layer, head), b, row in born[:4]
        if b
    ]
    more = [f"{len(born) - 4} weaker ones"] if len(born) > 4 else []
    said = f"Induction score above its null from then on: {'; '.join(told + more)}."
    return html.P(said, className="note")


def tracked(rows: Sequence[Row], alerts: Sequence[Row], theme: Theme) -> Any:
    """Entropy of each layer over steps: mean, lowest head and bound; where alerts began."""
    layers: dict[int, dict[int, list[Row]]] = {}
    for row in rows:
        layers.setdefault(row["layer"], {}).setdefault(row["step"], []).append(row)
    figure = go.Figure()
    palette = theme.scale()[2:]
    lows: dict[tuple[int, int], float | None] = {}
    for i, (layer, steps) in enumerate(sorted(layers.items())):
        color = palette[(i * (len(palette) - 1)) // max(1, len(layers) - 1)][1]
        xs = list(steps)
        mean = [_mean([r["entropy"] for r in steps[s]]) for s in xs]
        low = [min((r["entropy"] for r in steps[s] if r["entropy"] is not None), default=None) for s in xs]
        bound = [_mean([r["lower_bound"] for r in steps[s]]) for s in xs]
        lows |= {(layer, s): value for s, value in zip(xs, low, strict=True)}
        for name, y, dash in ((f"layer {layer}", mean, "solid"), ("lowest head", low, "dash"), ("bound", bound, "dot")):
            figure.add_scatter(
                x=xs,
                y=y,
                name=name,
                mode="lines",
                legendgroup=str(layer),
                showlegend=dash == "solid",
                line={"color": color, "dash": dash, "width": 2 if dash == "solid" else 1.2},
                hovertemplate=f"layer {layer}, {name}<br>step %{{x}}: <b>%{{y:.3g}}</b> nats<extra></extra>",
            )
    began = [a for a in alerts if a["began"]]
    if began:
        figure.add_scatter(
            x=[a["step"] for a in began],
            y=[lows.get((a["layer"], a["step"])) or 0 for a in began],
            mode="markers",
            name="alert",
            marker={"symbol": "triangle-down", "size": 10, "color": theme.second},
            text=[f"{a['kind']}: head {a['layer']}.{a['head']} since step {a['since']}" for a in began],
            hovertemplate="%{text}<extra></extra>",
        )
    style(figure, theme, 340)
    figure.update_xaxes(title_text="step", showgrid=False)
    figure.update_yaxes(title_text="entropy, nats", rangemode="tozero")
    return graph(figure, "entropy of a tracked training by step")


def partition(rows: Sequence[Row], theme: Theme) -> Any:
    """Roles of the layers, as bars of coverage."""
    colors = {"full": theme.muted, "selecting": theme.accent, "following": theme.second}
    figure = go.Figure()
    for role, color in colors.items():
        part = [row for row in rows if row["role"] == role]
        figure.add_bar(
            x=[str(row["layer"]) for row in part],
            y=[row["coverage"] for row in part],
            text=[f"← {row['selector']}" if role == "following" else "" for row in part],
            textposition="inside",
            name=role,
            marker_color=color,
            hovertemplate=f"layer %{{x}}, {role}<br>covered <b>%{{y:.3f}}</b><extra></extra>",
        )
    style(figure, theme, 200, bargap=0.2)
    order = [str(row["layer"]) for row in sorted(rows, key=lambda r: r["layer"])]
    figure.update_xaxes(title_text="layer", type="category", categoryorder="array", categoryarray=order, showgrid=False)
    figure.update_yaxes(title_text="attention covered", range=[0, 1])
    return graph(figure, "roles of the layers in the best partition")


def partition_curve(rows: Sequence[Row], theme: Theme) -> Any:
    """Mean coverage of the best partition against the number of full layers."""
    levels = sorted({row["n_full"] for row in rows})
    y = [_mean([row["coverage"] for row in rows if row["n_full"] == n]) for n in levels]
    figure = go.Figure(go.Scatter(x=levels, y=y, mode="lines+markers", line={"color": theme.accent}))
    style(figure, theme, 170, showlegend=False)
    figure.update_xaxes(title_text="full layers", showgrid=False, dtick=1 if len(levels) <= 16 else None)
    figure.update_yaxes(title_text="mean coverage")
    return graph(figure, "mean coverage of the best partition by number of full layers")


def named_layers(rows: Sequence[Row]) -> list[Row]:
    """Rows with "all" for layer −1."""
    return [{**row, "layer": "all" if row["layer"] < 0 else row["layer"]} for row in rows]


def window_loss(rows: Sequence[Row], theme: Theme) -> Any:
    """Rise of the loss by layer, one colour a window."""
    figure = go.Figure()
    ordered = sorted(rows, key=lambda r: (r["layer"] < 0, r["layer"]))
    for window in sorted({row["window"] for row in rows}):
        part = [row for row in named_layers(ordered) if row["window"] == window]
        figure.add_bar(
            x=[str(row["layer"]) for row in part],
            y=[row["delta"] for row in part],
            name=f"window {window}",
            error_y={
                "type": "data",
                # Without an interval (fewer than eight sequences) no bar.
                "array": [None if row["high"] is None else max(0.0, row["high"] - row["delta"]) for row in part],
                "arrayminus": [None if row["low"] is None else max(0.0, row["delta"] - row["low"]) for row in part],
                "color": theme.muted,
                "thickness": 1,
                "width": 2,
            },
            hovertemplate=f"layer %{{x}}, window {window}<br><b>%{{y:.4f}}</b> nats<extra></extra>",
        )
    style(figure, theme, 300, barmode="group")
    figure.update_xaxes(title_text="limited layer", type="category", showgrid=False)
    figure.update_yaxes(title_text="rise of the loss, nats")
    return graph(figure, "rise of the loss by limited layer and window")


def cost(rows: Sequence[Row], theme: Theme) -> Any:
    """Milliseconds a layer against tokens, both axes logarithmic."""
    figure = go.Figure()
    for module, color in (("attn", theme.accent), ("mlp", theme.second)):
        lengths = sorted({row["seq_len"] for row in rows})
        parts = {t: [row for row in rows if row["seq_len"] == t and row["module"] == module] for t in lengths}
        y = [1e3 * (_mean([r["seconds"] for r in parts[t]]) or 0) for t in lengths]
        low = [1e3 * (_mean([r["low"] for r in parts[t]]) or 0) for t in lengths]
        high = [1e3 * (_mean([r["high"] for r in parts[t]]) or 0) for t in lengths]
        figure.add_scatter(
            x=lengths,
            y=y,
            error_y={
                "type": "data",
                "array": [max(0.0, h - m) for h, m in zip(high, y, strict=True)],
                "arrayminus": [max(0.0, m - v) for v, m in zip(low, y, strict=True)],
                "thickness": 1,
            },
            name={"attn": "attention", "mlp": "feed-forward"}[module],
            mode="lines+markers",
            line={"color": color},
            hovertemplate="%{x} tokens<br><b>%{y:.3g}</b> ms<extra></extra>",
        )
    style(figure, theme, 300)
    figure.update_xaxes(
        title_text="tokens", type="log", showgrid=False, tickvals=lengths, ticktext=[str(t) for t in lengths]
    )
    figure.update_yaxes(title_text="ms a layer", type="log")
    return graph(figure, "time of attention and feed-forward network by length")


def mean_by_step(rows: Sequence[Row]) -> list[Row]:
    """Of a collapse run: one row a training and check, means over heads."""
    found: dict[tuple[str, str, int, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["method"], row["seed"], row["step"]), []).append(row)
    keys = ("model", "method", "seed", "step")
    return [
        dict(zip(keys, key, strict=True)) | {c: _mean([r[c] for r in part]) for c in _CURVES}
        for key, part in found.items()
    ]


def collapse(rows: Sequence[Row], theme: Theme) -> Any:
    """Loss above, entropy and bound below; one colour a method, one line a seed."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    names = {"baseline": ("baseline", theme.second), "sigma_reparam": ("σReparam", theme.accent)}
    shown: set[str] = set()
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in rows):
        name, color = names.get(method, (method, theme.muted))
        part = [row for row in rows if row["method"] == method and row["seed"] == seed]
        x = [row["step"] for row in part]
        for column, place, dash in (("loss", 1, "solid"), ("entropy", 2, "solid"), ("lower_bound", 2, "dot")):
            figure.add_scatter(
                x=x,
                y=[row[column] for row in part],
                name=name,
                mode="lines",
                legendgroup=method,
                showlegend=column == "loss" and method not in shown,
                line={"color": color, "dash": dash, "width": 1.5 if dash == "solid" else 1},
                hovertemplate=f"{name}, seed {seed}<br>step %{{x}}: <b>%{{y:.3g}}</b><extra></extra>",
                row=place,
                col=1,
            )
        shown.add(method)
    style(figure, theme, 380)
    figure.update_yaxes(title_text="loss, nats", row=1)
    figure.update_yaxes(title_text="entropy, nats", rangemode="tozero", row=2)
    figure.update_xaxes(title_text="step", showgrid=False, row=2)
    return graph(figure, "loss and entropy of the collapse demonstration")
