"""One template for every figure: no result sets colours of its own, and scales follow the sign of the values."""

from __future__ import annotations

import re
from pathlib import Path

import plotly.graph_objects as go

from attlas.data.figures import DARK, LIGHT, new_figure, new_grid, template

ROOT = Path(__file__).resolve().parents[2]


def test_figures_carry_the_template():
    for figure in (new_figure(go.Bar(y=[1, 2])), new_grid(rows=1, columns=2)):
        assert figure.layout.template.layout.colorway == LIGHT.categories
    assert template(DARK).layout.font.color == DARK.ink


def test_a_heatmap_leaves_its_scale_to_the_template():
    heat = new_figure(go.Heatmap(z=[[-1.0, 1.0]], zmid=0))
    assert heat.data[0].colorscale is None
    assert heat.layout.template.data.heatmap[0].autocolorscale is True


def test_no_result_makes_a_figure_or_a_scale_by_itself():
    own = re.compile(r"go\.Figure\(|make_subplots\(|colorscale=\"|\btemplate=\"")
    found = [
        str(path.relative_to(ROOT))
        for room in ("analyses", "saes")
        for path in (ROOT / room).rglob("*.py")
        if own.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_categories_are_distinct():
    for theme in (LIGHT, DARK):
        assert len(set(theme.categories)) == 8
