"""Attention maps as pictures: PNG images rather than thousands of elements."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from dash import html

from attlas.dashboard.components.figures import graph
from attlas.dashboard.theme import DARK, Theme, style

# Colours of heat laid over a picture: from nothing to a warm tone that neither grey glyphs nor photographs hold.
_HEAT = np.array([[226, 120, 40]], dtype=np.float32)


@cache
def _palette() -> np.ndarray:
    """The sequential scale of the dark theme in 256 steps, uint8 [256, 3]."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in DARK.sequential], dtype=np.float32)
    at = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(at, np.arange(len(stops)), stops[:, i]) for i in range(3)], 1).round().astype(np.uint8)


def levels(values: np.ndarray, top: float | None = None) -> np.ndarray:
    """Weights → 0…1, root of the share of the largest: the far field is faint, the root makes it visible."""
    top = float(np.max(values, initial=0)) if top is None else top
    found: np.ndarray = np.sqrt(np.clip(np.nan_to_num(values) / (top if top > 0 else 1.0), 0, 1))
    return found


def colored(values: np.ndarray, top: float | None = None) -> np.ndarray:
    """A map [rows, columns] as uint8 [rows, columns, 3]."""
    picked: np.ndarray = _palette()[(levels(values, top) * 255).round().astype(np.uint8)]
    return picked


def overlaid(picture: np.ndarray, values: np.ndarray, top: float | None = None, side: int = 448) -> np.ndarray:
    """A picture uint8 [h, w, 3], paler, with a map's heat on it; its longer side has about `side` pixels."""
    from PIL import Image

    scale = max(1, round(side / max(picture.shape[:2])))
    size = (picture.shape[1] * scale, picture.shape[0] * scale)
    smooth = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BILINEAR
    ground = np.asarray(Image.fromarray(picture).resize(size, smooth), dtype=np.float32)
    alpha = np.asarray(Image.fromarray(levels(values, top).astype(np.float32)).resize(size, Image.Resampling.NEAREST))[
        ..., None
    ]
    mixed: np.ndarray = (ground * (1 - 0.85 * alpha) + _HEAT * 0.85 * alpha).round().astype(np.uint8)
    return mixed


def png(pixels: np.ndarray) -> bytes:
    """uint8 [h, w, 3] or [h, w] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(pixels: np.ndarray) -> str:
    """uint8 pixels as a PNG data URL."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def pixels_of(url: str) -> np.ndarray:
    """A PNG data URL back to uint8 [h, w, 3]."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def sheet(maps: np.ndarray, picture: np.ndarray | None = None, cell: int = 72) -> np.ndarray:
    """Maps [layer, head, rows, columns] as one picture, a row a layer, with their numbers; each has its own scale."""
    from PIL import Image, ImageDraw

    n_layers, n_heads = maps.shape[:2]
    gap, head_line = 6, 16
    canvas = Image.new("RGB", (n_heads * (cell + gap) + 28, n_layers * (cell + gap) + head_line), "#181e25")
    pen = ImageDraw.Draw(canvas)
    for layer in range(n_layers):
        pen.text((6, head_line + layer * (cell + gap) + cell // 2 - 6), str(layer), fill="#98a1ab")
        for head in range(n_heads):
            shown = colored(maps[layer, head]) if picture is None else overlaid(picture, maps[layer, head], side=cell)
            tile = Image.fromarray(shown).resize((cell, cell), Image.Resampling.NEAREST)
            canvas.paste(tile, (28 + head * (cell + gap), head_line + layer * (cell + gap)))
    for head in range(n_heads):
        pen.text((28 + head * (cell + gap) + cell // 2 - 3, 2), str(head), fill="#98a1ab")
    return np.asarray(canvas)


def download(pixels: np.ndarray, name: str, text: str = "PNG") -> html.A:
    """A link that saves a picture as a file."""
    return html.A(text, href=data_url(pixels), download=name, className="button")


def patch_picker(
    picture: np.ndarray,
    values: np.ndarray,
    theme: Theme,
    *,
    label: str,
    query: int | None = None,
    unit: str = "of attention",
    height: int = 440,
) -> Any:
    """A picture with a map on it; a click on a patch sets the URL parameters `row` and `column`.

    Args:
        picture: uint8 [h, w, 3].
        values: map [rows, columns].
        query: the patch that is outlined, row-major.
    """
    rows, columns = values.shape
    clear = [[0, "rgba(0,0,0,0)"], [1, "rgba(0,0,0,0)"]]
    figure = go.Figure(
        go.Heatmap(
            z=np.round(values.astype(float), 5).tolist(),
            x=list(range(columns)),
            y=list(range(rows)),
            colorscale=clear,
            showscale=False,
            hovertemplate=f"row %{{y}}, column %{{x}}<br><b>%{{z:.4f}}</b> {unit}<extra></extra>",
        )
    )
    figure.add_layout_image(
        source=data_url(overlaid(picture, values)),
        xref="x",
        yref="y",
        x=-0.5,
        y=-0.5,
        sizex=columns,
        sizey=rows,
        sizing="stretch",
        layer="below",
    )
    if query is not None:
        y, x = divmod(query, columns)
        box = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
        figure.add_shape(type="rect", **box, line={"color": theme.accent, "width": 3})
    style(figure, theme, height, margin={"l": 4, "r": 4, "t": 4, "b": 4})
    figure.update_xaxes(visible=False, range=[-0.5, columns - 0.5], constrain="domain", fixedrange=True)
    figure.update_yaxes(visible=False, range=[rows - 0.5, -0.5], scaleanchor="x", constrain="domain", fixedrange=True)
    return graph(figure, label, pick="column,row")


def gallery(items: Sequence[tuple[Any, str, str, bool]]) -> html.Div:
    """Small pictures that are links: (uint8 pixels, caption, href, whether it is the chosen one)."""
    from dash import dcc

    cells = [
        dcc.Link(
            [html.Img(src=data_url(pixels), alt=caption), html.Span(caption)],
            href=href,
            className="map" + (" here" if here else ""),
        )
        for pixels, caption, href, here in items
    ]
    return html.Div(cells, className="maps small")
