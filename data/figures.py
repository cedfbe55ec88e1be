"""Colours and the plotly template of every figure, in a light and a dark form.

Figures that `.plot()` returns and those of the dashboard have the same colours: a result draws with `new_figure`, which
carries the template; a heatmap gets the scale of one hue, or the diverging one where its values cross zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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

    def scale(self, signed: bool = False, fading: bool = False) -> list[list[Any]]:
        """A plotly colour scale; `fading` has its strongest colour first."""
        colors = self.diverging if signed else self.sequential[:: -1 if fading else 1]
        return [[i / (len(colors) - 1), color] for i, color in enumerate(colors)]

    @property
    def marks(self) -> tuple[str, ...]:
        """Categorical colours, distinct in lightness too."""
        return (self.accent, self.second, self.third, self.muted)

    @property
    def categories(self) -> tuple[str, ...]:
        """Eight categorical colours: the marks first."""
        return (*self.marks, self.diverging[0], self.sequential[4], "#8a63b0", "#b5485d")


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


@cache
def template(theme: Theme = LIGHT) -> Any:
    """The plotly template of a theme: palette, scales, hairline grid, font."""
    import plotly.graph_objects as go

    axis = {"gridcolor": theme.line, "zerolinecolor": theme.line, "linecolor": theme.line, "automargin": True}
    layout = go.Layout(
        paper_bgcolor=theme.surface,
        plot_bgcolor=theme.surface,
        font={"family": FONT, "color": theme.ink, "size": 13},
        colorway=list(theme.categories),
        colorscale={
            "sequential": theme.scale(),
            "diverging": theme.scale(signed=True),
            "sequentialminus": theme.scale(fading=True),
        },
        coloraxis={"colorscale": theme.scale()},
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        xaxis=axis,
        yaxis=axis,
    )
    return go.layout.Template(layout=layout, data={"heatmap": [go.Heatmap(autocolorscale=True)]})


def new_figure(*traces: Any) -> Any:
    """A plotly Figure in Attlas's colours.

    >>> new_figure().layout.template.layout.font.size
    13
    """
    import plotly.graph_objects as go

    return go.Figure(list(traces), layout={"template": template()})


def new_grid(rows: int = 1, columns: int = 1, **settings: Any) -> Any:
    """A figure of several panels; `settings` are those of plotly's `make_subplots`."""
    from plotly.subplots import make_subplots

    return make_subplots(rows, columns, **settings).update_layout(template=template())
