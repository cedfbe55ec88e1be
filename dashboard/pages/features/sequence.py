"""The whole sequence of a feature's example: what was shown of it is lit, the rest is one click from being computed."""

from __future__ import annotations

from typing import Any

from dash import html

from attlas.dashboard.components import button_link, card, short
from attlas.dashboard.components.tokens import lit, visible
from attlas.dashboard.page import Data, link
from attlas.dashboard.reader import Row


def whole_sequence(data: Data) -> Any:
    """All tokens of the chosen sequence; nothing without one."""
    if data["sequence"] is None or not data["has_texts"]:
        return html.Div(className="job-place")
    close = button_link("Close", link("/feature", **{k: v for k, v in data["params"].items() if k != "sequence"}))
    if not data["texts"]:
        why = f"No example of this run is from sequence {data['sequence']}."
        return card(f"Sequence {data['sequence']}", html.P(why, className="note"), controls=[close])
    tokens: list[str] = data["texts"][0]["tokens"]
    mine = [row for row in data["examples"] if row["sequence"] == data["sequence"]]
    scale = max((row["activation"] for row in data["examples"]), default=1.0) or 1.0
    known = _known(mine)
    spans = [_token(text, known.get(i), scale) for i, text in enumerate(tokens)]
    where = link(
        "/text",
        model=data["model"],
        text="".join(tokens),
        hook=data["hook"],
        feature=f"{data['hook']}/{data['feature']}",
    )
    note = (
        f"{len(tokens)} tokens. Underlined: what its examples show, tinted by activation; the rest was not kept. "
        "“Compute” runs the model on the text and tells the activation of every token, with its sources."
    )
    return html.Div(
        [
            card(
                f"Sequence {data['sequence']}",
                html.P(spans, className="tokens whole"),
                note=note,
                controls=[button_link("Compute", where) if data["hook"] else None, close],
            )
        ],
        className="columns one",
    )


def _known(examples: list[Row]) -> dict[int, float]:
    """Position → activation, where an example shows it."""
    found: dict[int, float] = {}
    for row in examples:
        for i, value in enumerate(row.get("activations") or []):
            found[row["context_start"] + i] = max(value or 0.0, found.get(row["context_start"] + i, 0.0))
    return found


def _token(text: str, activation: float | None, scale: float) -> html.Span:
    if activation is None:
        return html.Span(visible(text), className="token")
    if activation <= 0:
        return html.Span(visible(text), className="token seen")
    return lit(text, min(1.0, activation / scale), " seen", title=short(activation))
