"""The pages, one line each, in the order of the navigation."""

from __future__ import annotations

import importlib

from attlas.dashboard.page import Page

MODULES = (
    "overview",
    "features.table",
    "features.feature",
    "features.text",
    "features.explain",
    "features.steer",
    "features.survey",
    "heads.layers",
    "heads.finder",
    "heads.head",
    "heads.sequences",
    "heads.projections",
    "heads.own_text",
    "health.page",
    "prune.page",
    "circuit.page",
    "vit.page",
    "vit.head",
    "image.page",
    "saes.training",
    "saes.evaluation",
    "runs.page",
    "runs.compare",
)


def pages() -> tuple[Page, ...]:
    """Every page, imported."""
    return tuple(importlib.import_module(f"attlas.dashboard.pages.{name}").PAGE for name in MODULES)
