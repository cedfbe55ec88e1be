"""The prompt of the circuit page, its features, and the one in focus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from dash import dcc, html

from attlas.dashboard.components import (
    attributes,
    button_link,
    card,
    columns,
    graph,
    metric_cards,
    picker,
    short,
    table,
    text_box,
)
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.page import Data, link
from attlas.dashboard.theme import Theme, style
from attlas.errors import ConfigError


def here(data: Data, **changes: Any) -> str:
    """A link to this page with some parameters changed; None drops one."""
    return link("/circuit", **{**data["params"], **changes})


def step(text: str) -> tuple[int, int, int] | None:
    """(layer, feature, position) of "2/831@5"; None when it is no feature, or counts from the end."""
    from attlas.analyses.circuits.frozen import parse_part

    try:
        part = parse_part(text)
    except ConfigError:
        return None
    return (part.layer, part.feature, part.position) if part.kind == "feature" and part.position >= 0 else None


def tabs(data: Data, views: Mapping[str, str]) -> html.Nav:
    """The views of a prompt, as links."""
    items = [
        dcc.Link(title, href=here(data, view=name), className="button" + (" here" if name == data["view"] else ""))
        for name, title in views.items()
    ]
    return html.Nav(items, className="tags tabs", **attributes({"aria-label": "Views of the prompt"}))


# -- the prompt -----------------------------------------------------------------------------------------------------


def prompt_view(data: Data, theme: Theme, remark: str) -> html.Section:
    """The text, the model, its autoencoders, what it says next, and its tokens."""
    found = data["prompt"]
    controls = [picker("lm", "Model", [(n, n) for n in data["lms"]], data["lm"], data["default_lm"])]
    parts: list[Any] = [
        text_box("text", "Prompt (Ctrl-Enter runs it)", data["text"], data["default_text"], lines=2),
        _autoencoders(data),
        html.P(remark, className="note") if remark else None,
    ]
    if found is not None:
        parts += [*[html.P(f"Note: {note}.", className="note warning") for note in found["notes"]], _next(data)]
    if data["params"].keys() - {"model", "lm", "text", "view"}:
        kept = {k: data["params"].get(k) for k in ("model", "lm", "text")}
        controls.append(button_link("Clear choices", link("/circuit", **kept)))
    return card("Prompt", *parts, controls=controls)


def _autoencoders(data: Data) -> Any:
    if not data["autoencoders"]:
        return None
    pickers = [
        picker(
            f"sae{layer}",
            f"Layer {layer}",
            [*[(run, run) for run in runs], ("none", "none: heads")],
            data["saes"][layer] or "none",
            runs[0],
        )
        for layer, runs in data["autoencoders"].items()
    ]
    n = sum(bool(run) for run in data["saes"].values())
    return html.Details(
        [html.Summary(f"{n} autoencoder{'' if n == 1 else 's'}"), html.Div(pickers, className="controls")],
        className="table",
    )


def _next(data: Data) -> html.Div:
    """Pickers of the logit difference, and its value."""
    found = data["prompt"]
    options = [(str(n["id"]), f"{visible(n['token'])}  {n['probability']:.0%}") for n in found["next"]]
    best, second = found["next"][0]["id"], found["next"][1]["id"]
    other = second if found["right"] == best else best
    right = picker("right", "Next token", options, str(found["right"]), str(best))
    wrong = picker("wrong", "rather than", [*options, ("-1", "(nothing)")], str(found["wrong"]), str(other))
    value = html.Div(
        [
            html.Span("logit difference" if found["wrong"] >= 0 else "logit", className="metric-label"),
            html.B(short(found["difference"]), className="difference"),
        ]
    )
    return html.Div([right, wrong, value], className="controls next")


# -- features -------------------------------------------------------------------------------------------------------


def feature_view(data: Data, theme: Theme) -> Any:
    """Tokens with their features; below, the feature in focus."""
    found = data["prompt"]
    if found is None:
        return None
    return html.Div([_tokens(data, theme), _focus(data, theme)])


def _tokens(data: Data, theme: Theme) -> Any:
    found = data["prompt"]
    n = len(found["tokens"])
    at = _at(data)
    chips = [
        html.Div(
            [html.Span(f"Layer {layer['layer']}", className="metric-label"), *_chips(data, layer, at)], className="tags"
        )
        for layer in found["layers"]
    ]
    items = [
        dcc.Link(
            visible(text), href=here(data, at=i, view="features"), className="token" + (" here" if i == at else "")
        )
        for i, text in enumerate(found["tokens"])
    ]
    note = (
        f"The {n} tokens; one is chosen, with its strongest features in each layer. A click on a feature explains it."
    )
    parts: list[Any] = [html.P(items, className="tokens token-links"), *chips]
    if found["layers"]:
        parts.append(_map(found, data["names"], theme))
    else:
        note = f"The {n} tokens. Features need autoencoders; heads are under Attention and Graph."
    return card("Tokens and their features", *parts, note=note)


def _at(data: Data) -> int:
    """The token in focus: chosen, or the focused feature's, or the last."""
    n = len(data["prompt"]["tokens"])
    asked = data["params"].get("at", "")
    if asked.isdigit() and int(asked) < n:
        return int(asked)
    if data["trail"]:
        return min(n - 1, int(data["trail"][-1].split("@")[1]))
    return n - 1


def _chips(data: Data, layer: dict[str, Any], at: int) -> list[Any]:
    rows = [r for r in layer["features"] if r["position"] == at]
    links = []
    for row in rows:
        id = f"{layer['layer']}/{row['feature']}@{at}"
        focused = bool(data["trail"]) and data["trail"][-1] == id
        name = data["names"].get(f"{layer['layer']}/{row['feature']}")
        called = html.I(f" {name}") if name else None
        text: list[Any] = [html.B(str(row["feature"])), called, f" {short(row['activation'])}"]
        links.append(
            dcc.Link(
                text,
                href=here(data, trail=id, view="features", at=at),
                className="tag" + (" accent" if focused else ""),
            )
        )
    return links or [html.Span("none active", className="note")]


def _map(found: dict[str, Any], names: Mapping[str, str], theme: Theme) -> Any:
    """The strongest feature of every layer at every token, as one figure (many components would be slow)."""
    tokens, layers = found["tokens"], found["layers"]
    best = [{r["position"]: r for r in reversed(layer["features"])} for layer in layers]
    rows = [[at.get(p) for p in range(len(tokens))] for at in best]
    trace = go.Heatmap(
        z=[[r["activation"] if r else None for r in row] for row in rows],
        text=[[str(r["feature"]) if r else "" for r in row] for row in rows],
        customdata=[
            [names.get(f"{layer['layer']}/{r['feature']}", "") if r else "" for r in row]
            for layer, row in zip(layers, rows, strict=True)
        ],
        texttemplate="%{text}" if len(tokens) <= 24 else None,
        textfont={"size": 10},
        y=[f"layer {layer['layer']}" for layer in layers],
        colorscale=theme.scale(),
        hovertemplate="%{y}, token %{x}<br>feature %{text} %{customdata}: <b>%{z:.3g}</b><extra></extra>",
    )
    figure = over_tokens(trace, tokens, theme, 110 + 34 * len(layers))
    return graph(figure, "strongest feature of each layer at each token", pick="at,,view=features")


def over_tokens(trace: go.Heatmap, tokens: list[str], theme: Theme, height: int) -> go.Figure:
    """A heatmap whose columns are tokens, dressed; a click gives the token's position."""
    trace.update(x=list(range(len(tokens))), xgap=2, ygap=2)
    trace.update(colorbar={"thickness": 8, "outlinewidth": 0, "tickfont": {"color": theme.muted, "size": 11}})
    figure = style(go.Figure(trace), theme, height, margin={"l": 52, "r": 8, "t": 8, "b": 60})
    ticks = {"tickvals": list(range(len(tokens))), "ticktext": [visible(t) for t in tokens]}
    figure.update_xaxes(**ticks, tickangle=-50, showgrid=False, zeroline=False)
    figure.update_yaxes(type="category", showgrid=False)
    return figure


def _focus(data: Data, theme: Theme) -> Any:
    if not data["trail"]:
        return html.P("Choose a feature to see which tokens and heads it was made from.", className="note")
    trail, found = data["trail"], data["feature"]
    crumbs: list[Any] = []
    for i, id in enumerate(trail):
        target = here(data, trail=">".join(trail[: i + 1]), at=None, view="features")
        strong = " accent" if i == len(trail) - 1 else ""
        crumbs += [html.Span(" ← ") if i else None, dcc.Link(id, href=target, className=f"tag{strong}")]
    path = html.Nav(crumbs, className="tags crumbs", **attributes({"aria-label": "Path upstream"}))
    if found is None:
        return path
    layer, index, position = step(trail[-1]) or (0, 0, 0)
    dfa = sum(r["dfa"] for r in found["dfa"])
    numbers = metric_cards(
        [
            ("Feature", f"{layer}/{index}", f"at token {position} “{visible(data['prompt']['tokens'][position])}”"),
            ("Activation", found["value"], "what is explained"),
            ("From attention", dfa, "Σ of the map below; the rest is the encoder's bias"),
            ("Gap", found["gap"], "of the sum of all terms, relative"),
        ]
    )
    ablate = ",".join(dict.fromkeys([*data["ablated"], trail[-1]]))
    run = data["saes"].get(str(layer))
    buttons = [button_link("Take it out", here(data, ablate=ablate)), *_interpreted(data, run, index)]
    both = columns(_dfa(data, theme, layer, position), _terms(data))
    return html.Div([path, numbers, html.Div(buttons, className="tags apart"), both])


def _interpreted(data: Data, run: str | None, index: int) -> list[Any]:
    told = data["told"].get(run or "")
    return [button_link("What it means", link("/feature", run=told, id=index))] if told else []


def _dfa(data: Data, theme: Theme, layer: int, position: int) -> Any:
    tokens = data["prompt"]["tokens"]
    rows = data["feature"]["dfa"]
    heads, sources = sorted({r["head"] for r in rows}), sorted({r["source"] for r in rows})
    cells = {(r["head"], r["source"]): r["dfa"] for r in rows}
    trace = go.Heatmap(
        z=[[cells[h, s] for s in sources] for h in heads],
        y=[str(h) for h in heads],
        colorscale=theme.scale(True),
        zmid=0,
        hovertemplate="head %{y}, source %{x}<br><b>%{z:.4g}</b><extra></extra>",
    )
    figure = over_tokens(trace, tokens[: len(sources)], theme, 110 + 30 * len(heads))
    figure.update_yaxes(title_text="head", autorange="reversed")
    pick = f"src,head,view=attention,layer={layer},dest={position}"
    named = [{**r, "token": visible(tokens[r["source"]])} for r in sorted(rows, key=lambda r: -abs(r["dfa"]))]
    names = {"head": "head", "source": "source", "token": "token", "dfa": "attribution"}
    note = "Direct feature attribution by head and source token, in units of activation. A click: why it looked there."
    return card(
        "Heads and source tokens",
        graph(figure, "attribution by head and source", pick=pick),
        table(named, names, summary="The numbers"),
        note=note,
    )


def _terms(data: Data) -> Any:
    tokens = data["prompt"]["tokens"]
    shown = []
    for term in data["feature"]["terms"]:
        where = visible(tokens[term["position"]]) if term["position"] >= 0 else ""
        shown.append({"term": _term(data, term), "token": where, "part": term["weight"]})
    names = {"term": "term", "token": "at token", "part": "part of the activation"}
    note = "Terms of the residual streams it was read from; they add up to the activation. Features can be followed upstream."
    return card("What it was made from", table(shown, names, summary="Terms", open_=True), note=note)


def _term(data: Data, term: dict[str, Any]) -> Any:
    if term["kind"] == "feature":
        id = f"{term['layer']}/{term['feature']}@{term['position']}"
        target = here(data, trail=">".join([*data["trail"], id]), at=None, view="features")
        return dcc.Link(f"feature {id}", href=target, className="upstream")
    if term["kind"] == "head":
        target = here(data, view="attention", layer=term["layer"], head=term["head"], dest=term["position"], src=None)
        return dcc.Link(f"head {term['layer']}.{term['head']}@{term['position']}", href=target)
    if term["kind"] == "remainder":
        return f"{term['n_terms']} smaller terms"
    return "constant of norms and biases" if term["kind"] == "constant" else term["id"]
