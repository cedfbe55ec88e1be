"""Figures that are interactive in Jupyter and still pictures where a notebook is only read (GitHub, a diff, a mail)."""

from __future__ import annotations

import importlib.util
import shutil

import plotly.io as pio

from attlas.data.figures import template

CHROME = ("chromium", "chromium-browser", "google-chrome", "chrome")


def use() -> None:
    """Set Attlas's plotly template; add a PNG beside every interactive figure where kaleido and a browser are installed."""
    still = importlib.util.find_spec("kaleido") is not None and any(shutil.which(name) for name in CHROME)
    pio.renderers["png"].width, pio.renderers["png"].height, pio.renderers["png"].scale = 760, 400, 1.25
    pio.renderers.default = "plotly_mimetype+png" if still else "plotly_mimetype"
    pio.templates["attlas"] = template()
    pio.templates["attlas"].layout.update(width=760, height=400)
    pio.templates.default = "plotly_white+attlas"
