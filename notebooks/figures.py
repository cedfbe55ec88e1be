"""Figures that are interactive in Jupyter and still pictures where a notebook is only read (GitHub, a diff, a mail)."""

from __future__ import annotations

import importlib.util
import shutil

import plotly.graph_objects as go
import plotly.io as pio

CHROME = ("chromium", "chromium-browser", "google-chrome", "chrome")


def use() -> None:
    """Set the house style; add a PNG beside every interactive figure where kaleido and a browser are installed."""
    still = importlib.util.find_spec("kaleido") is not None and any(shutil.which(name) for name in CHROME)
    pio.renderers["png"].width, pio.renderers["png"].height, pio.renderers["png"].scale = 760, 400, 1.25
    pio.renderers.default = "plotly_mimetype+png" if still else "plotly_mimetype"
    pio.templates["attlas"] = go.layout.Template(
        layout={
            "width": 760,
            "height": 400,
            "font": {"family": "Inter, system-ui, sans-serif", "size": 13, "color": "#20262e"},
            "colorway": ["#17647a", "#c0762b", "#7d8c4a", "#69717b", "#8a4a10", "#3b8b9a"],
            "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
            "coloraxis": {"colorscale": [[0, "#f6f1e6"], [0.5, "#6db0b4"], [1, "#0e3d50"]]},
        }
    )
    pio.templates.default = "plotly_white+attlas"
