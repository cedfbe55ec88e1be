"""Colours and the plotly template, in a light and a dark form; `assets/attlas.css` holds the same names for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Theme:
    """One colour scheme.

    Attributes:
        name: "light" or "dark".
        ink, muted, line, surface: text, secondary text, rules, panel background.
        accent, second, third: the restrained palette of marks.
        sequential: colour scale of one hue, lightness monotone away from the panel.
        diverging: scale for signed values, the panel's own tone in the middle.
    """

    name: str
    ink: str
    muted: str
    line: str
    surface: str
    accent: str
    second: str
    third: str
    sequential: tuple[str, ...]
    diverging: tuple[str, ...]

    def scale(self, signed: bool = False) -> list[list[Any]]:
        """A plotly colour scale."""
        colors = self.diverging if signed else self.sequential
        return [[i / (len(colors) - 1), color] for i, color in enumerate(colors)]

    @property
    def marks(self) -> tuple[str, ...]:
        """Categorical colours, distinct in lightness too."""
        return (self.accent, self.second, self.third, self.muted)


LIGHT = Theme(
    name="light",
    ink="#20262e",
    muted="#69717b",
    line="#e4dfd4",
    surface="#fffdf9",
    accent="#17647a",
    second="#c0762b",
    third="#7d8c4a",
    sequential=("#f6f1e6", "#d5e4dd", "#a6cdc9", "#6db0b4", "#3b8b9a", "#1e6478", "#0e3d50"),
    diverging=("#8a4a10", "#c98a45", "#ebd2ae", "#f6f1e6", "#a6cdc9", "#3b8b9a", "#0e3d50"),
)
DARK = Theme(
    name="dark",
    ink="#e8e4da",
    muted="#98a1ab",
    line="#2c353f",
    surface="#181e25",
    accent="#62b4c6",
    second="#e2a45a",
    third="#aebd77",
    sequential=("#1d252d", "#1d3844", "#205261", "#2c7183", "#4a94a3", "#84bcc0", "#d3e9e1"),
    diverging=("#f0bd7c", "#b47a37", "#5e4426", "#1d252d", "#205261", "#4a94a3", "#d3e9e1"),
)


def theme(name: str | None) -> Theme:
    """The theme of a name; light when it is anything but "dark"."""
    return DARK if name == "dark" else LIGHT


FONT = "Inter Variable, Inter, system-ui, sans-serif"


def style(figure: Any, look: Theme, height: int = 300, **layout: Any) -> Any:
    """Dress a figure: transparent ground, hairline grid, the page's font; returns it."""
    axis = {
        "gridcolor": look.line,
        "zerolinecolor": look.line,
        "linecolor": look.line,
        "tickfont": {"color": look.muted, "size": 11},
        "title": {"font": {"color": look.muted, "size": 12}},
        "automargin": True,
    }
    figure.update_layout(
        height=height,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "color": look.ink, "size": 12},
        colorway=list(look.marks),
        margin={"l": 48, "r": 12, "t": 12, "b": 40},
        hoverlabel={"bgcolor": look.surface, "bordercolor": look.line, "font": {"family": FONT, "color": look.ink}},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"color": look.muted}},
    )
    figure.update_xaxes(**axis, zeroline=False)  # it looks like a mark where steps or layers begin at 0
    figure.update_yaxes(**axis)
    figure.update_layout(**layout)
    return figure
