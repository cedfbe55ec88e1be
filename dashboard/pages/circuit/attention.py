"""Attention scores of the circuit page, and the run without some parts."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from dash import dcc, html

from attlas.dashboard.components import button_link, card, columns, graph, metric_cards, picker, table, tag
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.page import Data
from attlas.dashboard.pages.circuit.view import here, over_tokens, step
from attlas.dashboard.theme import Theme, style


def attention_view(data: Data, theme: Theme) -> Any:
    """A head's pattern, and the score of the chosen cell in pairs of terms."""
    found, prompt = data["score"], data["prompt"]
    if found is None or prompt is None:
        return None
    tokens = prompt["tokens"]
    layer, head, dest, src = (found[k] for k in ("layer", "head", "dest", "src"))
    last = prompt["n_layers"] - 1
    controls = [
        picker("layer", "Layer", [(str(i), f"Layer {i}") for i in range(last + 1)], str(layer), str(last)),
        picker("head", "Head", [(str(i), f"Head {i}") for i in range(prompt["n_heads"])], str(head), "0"),
    ]
    pattern = _pattern(found["pattern"], tokens, theme)
    cell = f"{dest} “{visible(tokens[dest])}” → {src} “{visible(tokens[src])}”"
    numbers = metric_cards(
        [
            ("Score", found["score"], "the model's, before the softmax"),
            ("Sum of all pairs", found["sum"], "equal to it to 1e-4"),
            ("Attention", found["attention"], "after the softmax"),
        ]
    )
    ablate = ",".join(dict.fromkeys([*data["ablated"], f"{layer}.{head}@{dest}"]))
    sides = [
        table(
            [{**r, "term": _linked(data, r["term"])} for r in found["sides"][w][:10]],
            {"term": f"at the {name}", "score": "part of the score"},
            summary=name,
            open_=True,
        )
        for w, name in (("dest", "destination"), ("src", "source"))
    ]
    names = {"dest": "term at the destination", "src": "term at the source", "score": "part of the score"}
    listed = [{**r, "dest": _linked(data, r["dest"]), "src": _linked(data, r["src"])} for r in found["pairs"][:15]]
    pairs = [*listed, _rest(found["pairs"])]
    return html.Div(
        [
            columns(
                card(
                    f"Head {layer}.{head}",
                    pattern,
                    pairs_map(found["pairs"], theme),
                    controls=controls,
                    note="Attention from destination (down) to source (across). A click on a cell explains its score.",
                ),
                card(
                    f"{cell}",
                    numbers,
                    table(pairs, names, summary="Pairs of terms", open_=True),
                    button_link(f"Take head {layer}.{head} out at token {dest}", here(data, ablate=ablate)),
                    note="The score as a sum over pairs, one term at each end; norm biases and b_Q, b_K are “constant”.",
                ),
            ),
            columns(*[card(f"By the {n} alone", s) for n, s in zip(("destination", "source"), sides, strict=True)]),
        ]
    )


def _linked(data: Data, id: str) -> Any:
    """A term's name; of a feature, a link to what it was made from."""
    place = step(id)
    if place is None:
        return id
    trail = f"{place[0]}/{place[1]}@{place[2]}"
    return dcc.Link(id, href=here(data, view="features", trail=trail, at=None))


def _pattern(rows: list[dict[str, Any]], tokens: list[str], theme: Theme) -> Any:
    n = len(tokens)
    cells = {(r["dest"], r["src"]): r["attention"] for r in rows}
    trace = go.Heatmap(
        z=[[cells.get((d, s)) for s in range(n)] for d in range(n)],
        y=list(range(n)),
        colorscale=theme.scale(),
        hovertemplate="%{y} → %{x}<br>attention <b>%{z:.3g}</b><extra></extra>",
    )
    figure = over_tokens(trace, tokens, theme, max(260, min(760, 130 + 22 * n)))
    ticks = {"tickvals": list(range(n)), "ticktext": [visible(t) for t in tokens]}
    figure.update_yaxes(**ticks, type="linear", autorange="reversed", zeroline=False)
    return graph(figure, "attention from each token to each token", pick="src,dest")


def pairs_map(rows: list[dict[str, Any]], theme: Theme, n: int = 9) -> Any:
    """The listed pairs of the n largest terms of each end as a heatmap; pairs that are not listed stay empty."""
    rows = [r for r in rows if r["dest"] != "remainder"]
    ends: dict[str, list[str]] = {}
    for end in ("dest", "src"):
        size: dict[str, float] = {}
        for r in rows:
            size[r[end]] = size.get(r[end], 0.0) + abs(r["score"])
        ends[end] = sorted(size, key=lambda name: -size[name])[:n]
    cells = {(r["dest"], r["src"]): r["score"] for r in rows}
    trace = go.Heatmap(
        z=[[cells.get((d, s)) for s in ends["src"]] for d in ends["dest"]],
        x=ends["src"],
        y=ends["dest"],
        xgap=2,
        ygap=2,
        zmid=0,
        colorscale=theme.scale(True),
        colorbar={"thickness": 8, "outlinewidth": 0, "tickfont": {"color": theme.muted, "size": 11}},
        hovertemplate="%{y} with %{x}<br><b>%{z:.3g}</b> of the score<extra></extra>",
    )
    figure = style(go.Figure(trace), theme, 130 + 26 * len(ends["dest"]), margin={"l": 90, "r": 8, "t": 8, "b": 80})
    figure.update_xaxes(title_text="source", tickangle=-50, showgrid=False)
    figure.update_yaxes(title_text="destination", autorange="reversed", showgrid=False)
    return graph(figure, "parts of the score by pair of terms")


def _rest(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"dest": "all other pairs", "src": "", "score": sum(row["score"] for row in pairs[15:])}


def ablation_view(data: Data) -> Any:
    """What the model says without some parts."""
    if not data["ablated"]:
        return None
    found = data["ablation"]
    parts: list[Any] = []
    for id in data["ablated"]:
        left = ",".join(other for other in data["ablated"] if other != id) or None
        parts.append(html.Span([tag(id, "accent"), dcc.Link(" put back", href=here(data, ablate=left))]))
    shown: list[Any] = [html.Div(parts, className="tags")]
    if found is not None:
        rows = [
            {"token": html.Code(visible(r["token"])), "before": r["before"], "after": r["after"]}
            for r in found["tokens"]
        ]
        names = {"token": "next token", "before": "probability before", "after": "after"}
        shown += [
            metric_cards(
                [
                    ("Logit difference before", found["before"], ""),
                    ("after", found["after"], ""),
                    ("Change", found["change"], "logits"),
                    ("KL", found["kl"], "nats, of the next-token distribution"),
                ]
            ),
            table(rows, names, summary="Next tokens", open_=True),
        ]
    note = "Set to zero at that token in a run of the model; later layers see it gone, the autoencoder's error stays."
    return html.Div(card("Without", *shown, note=note), className="ablation")
