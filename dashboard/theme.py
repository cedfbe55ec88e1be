"""Fonts and margins of the pages' figures; colours are in `data/figures.py`, under the same names as in `assets/attlas.css`."""

from __future__ import annotations

from typing import Any

from attlas.data.figures import DARK, FONT, LIGHT, Theme, theme

__all__ = ["DARK", "FONT", "LIGHT", "Theme", "style", "theme"]


def style(figure: Any, theme: Theme, height: int = 300, **layout: Any) -> Any:
    """Dress a figure: transparent ground, hairline grid, the page's font; returns it."""
    axis = {
        "gridcolor": theme.line,
        "zerolinecolor": theme.line,
        "linecolor": theme.line,
        "tickfont": {"color": theme.muted, "size": 11},
        "title": {"font": {"color": theme.muted, "size": 12}},
        "automargin": True,
    }
    figure.update_layout(
        height=height,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "color": theme.ink, "size": 12},
        colorway=list(theme.marks),
        margin={"l": 48, "r": 12, "t": 12, "b": 40},
        hoverlabel={"bgcolor": theme.surface, "bordercolor": theme.line, "font": {"family": FONT, "color": theme.ink}},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"color": theme.muted}},
    )
    figure.update_xaxes(**axis, zeroline=False)  # it looks like a mark where steps or layers begin at 0
    figure.update_yaxes(**axis)
    figure.update_layout(**layout)
    return figure
