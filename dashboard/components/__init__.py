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
    small_box,
    table,
    tag,
    words_box,
)
from attlas.dashboard.components.figures import bars, curve, graph, heatmap, histogram
from attlas.dashboard.components.job_panel import job_panel, slider, text_box, upload
from attlas.dashboard.components.notes import note_card
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
    "job_panel",
    "metric_cards",
    "note_card",
    "patches",
    "picker",
    "short",
    "slider",
    "small_box",
    "table",
    "tag",
    "text_box",
    "upload",
    "words_box",
]
