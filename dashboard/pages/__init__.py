"""The pages, one line each, in the order of the navigation."""

from __future__ import annotations

import importlib

from attlas.dashboard.page import Page

MODULES = (
    "overview",
    "features",
    "feature",
    "survey",
    "layers",
    "head",
    "health",
    "prune",
    "circuit",
    "vit",
    "vit_head",
    "image",
    "training",
    "evaluation",
)


def pages() -> tuple[Page, ...]:
    """Every page, imported."""
    return tuple(importlib.import_module(f"attlas.dashboard.pages.{name}").PAGE for name in MODULES)
