"""Examples of a feature: tokens of a text, or patches of an image, tinted by activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dash import html

from attlas.dashboard.components.basic import attributes, short
from attlas.dashboard.components.maps import colored, data_url, overlaid


def visible(token: str) -> str:
    """A token with its line breaks and blank self made visible."""
    shown = token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")
    return shown if shown.strip() else shown.replace(" ", "·")


def example(row: dict[str, Any], scale: float, more: Any = None, z_pattern: bool = False) -> html.Li:
    """One text example; `scale` is the activation that gets the full tint, `more` stands after its place.

    `z_pattern` adds the tokens again, tinted by what each adds to the peak's activation, which is all there is to it.
    """
    tokens: Sequence[str] = row.get("tokens") or []
    activations: Sequence[float] = row.get("activations") or []
    start = row.get("context_start")
    position = row.get("position")
    peak = None
    if isinstance(start, int) and isinstance(position, int) and 0 <= position - start < len(tokens):
        peak = position - start
    elif activations:
        peak = max(range(len(activations)), key=lambda i: activations[i] or 0.0)
    sources: Sequence[float] = row.get("dfa_sources") or []
    source = max(range(len(sources)), key=lambda i: sources[i] or 0.0) if any(sources) else None
    outside = row.get("dfa_outside") or 0.0
    elsewhere = source is not None and outside > (sources[source] or 0.0)
    if elsewhere:
        source = None
    spans = [
        _token(token, activations[i] if i < len(activations) else None, scale, i == peak, i == source)
        for i, token in enumerate(tokens)
    ]
    where = f"sequence {row['sequence']}, position {position}" if row.get("sequence") is not None else ""
    if source is not None:
        where += f" · {short(sources[source])} of it from “{visible(tokens[source])}”"
    elif elsewhere:
        where += f" · {short(outside)} of it from text before this excerpt"
    return html.Li(
        [
            html.Div([html.B(short(row.get("activation"))), html.Span(where), more], className="example-head"),
            html.P(spans, className="tokens"),
            *(_sources(row, tokens, sources, peak) if z_pattern and any(sources) else []),
        ],
        className="example",
    )


def _sources(row: dict[str, Any], tokens: Sequence[str], sources: Sequence[float], peak: int | None) -> list[Any]:
    """The z pattern of an example: source tokens up to the peak, tinted by what they add to it; what takes away is said."""
    shown = [value or 0.0 for value in sources]
    most = max(max(shown), 1e-12)
    spans = [_token(token, shown[i], most, i == peak, False) for i, token in enumerate(tokens)]
    taken = sum(value for value in shown if value < 0)
    outside = row.get("dfa_outside") or 0.0
    said = f"z pattern: {short(sum(shown) + outside)} in all"
    said += f", {short(outside)} of it from text before this excerpt" if abs(outside) > 1e-3 * most else ""
    said += f"; {short(taken)} from sources that take away (not tinted)" if taken < -1e-3 * most else ""
    return [html.P(said, className="note"), html.P(spans, className="tokens z-pattern")]


def _token(token: str, activation: float | None, scale: float, peak: bool, source: bool) -> html.Span:
    strength = max(0.0, min(1.0, (activation or 0.0) / scale)) if scale > 0 else 0.0
    mark = " source" if source else ""
    if strength <= 0:
        return html.Span(visible(token), className=f"token{mark}")
    spoken = {"data-tip": f"{short(activation)}", "aria-label": f"{token}, activation {short(activation)}"}
    return lit(token, strength, f"{' peak' if peak else ''}{mark}", tabIndex=0 if peak else None, **attributes(spoken))


def lit(token: str, strength: float, classes: str = "", **more: Any) -> html.Span:
    """A token with a tint of strength 0 to 1; `classes` follow its own, `more` are attributes."""
    strong = " strong" if strength > 0.55 else ""
    style = {"--heat": f"{100 * strength:.0f}%"}
    return html.Span(visible(token), className=f"token lit{strong}{classes}", style=style, **more)


def patches(
    row: dict[str, Any], scale: float, grid: tuple[int, int] | None = None, picture: np.ndarray | None = None
) -> html.Li:
    """One image example: its picture with the activations on it, or these alone.

    Args:
        row: with activations of prefix tokens and patches, row-major.
        scale: the activation that gets the full tint.
        grid: (rows, columns) of patches; the largest square that fits, when it is not known.
        picture: uint8 [h, w, 3].
    """
    activations = np.array([a or 0.0 for a in row.get("activations") or [0.0]])
    rows, columns = grid or (int(len(activations) ** 0.5),) * 2
    heat = activations[len(activations) - rows * columns :].reshape(rows, columns)
    image = row.get("image", row.get("image_index", row.get("sequence")))
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    pixels = colored(heat, scale) if picture is None else overlaid(picture, heat, scale, side=160)
    said = f"image {image}: strongest at row {y}, column {x} of patches, {short(float(heat.max()))}"
    return html.Li(
        [
            html.Div([html.B(short(row.get("activation"))), html.Span(f"image {image}")], className="example-head"),
            html.Img(src=data_url(pixels), alt=said, title=said, className="wide"),
        ],
        className="example image",
    )
