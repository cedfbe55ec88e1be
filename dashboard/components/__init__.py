"""Building blocks of pages; each takes plain data and gives Dash components."""

from attlas.dashboard.components.basic import (
    attributes,
    button_link,
    card,
    columns,
    empty,
    heading,
    metric_cards,
    picker,
    short,
    table,
    tag,
)
from attlas.dashboard.components.figures import bars, curve, graph, heatmap, histogram
from attlas.dashboard.components.tokens import example, patches

__all__ = [
    "attributes",
    "bars",
    "button_link",
    "card",
    "columns",
    "curve",
    "empty",
    "example",
    "graph",
    "heading",
    "heatmap",
    "histogram",
    "metric_cards",
    "patches",
    "picker",
    "short",
    "table",
    "tag",
]
