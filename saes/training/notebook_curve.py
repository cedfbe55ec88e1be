"""A training curve that redraws itself while the cell runs."""

from __future__ import annotations

import json
import time
from typing import Any

from attlas.saes.plots import training_figure
from attlas.saes.training.loop import OnStep, Progress

REDRAW_SECONDS = 2.0


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def notebook_curve() -> OnStep | None:
    """An `on_step` that draws the curve under the running cell; None outside of notebooks."""
    if not in_notebook():
        return None
    from IPython.display import HTML, display

    handle = display(HTML("<em>training …</em>"), display_id=True)
    rows: list[dict[str, Any]] = []
    drawn = 0.0

    def draw(progress: Progress) -> None:
        nonlocal drawn
        rows.extend(progress.rows)
        last = progress.step == progress.n_steps
        if not rows or not (last or (progress.rows and time.monotonic() - drawn > REDRAW_SECONDS)):
            return
        drawn = time.monotonic()
        figure = training_figure(rows)
        state = f"{progress.step:,} of {progress.n_steps:,} steps, {progress.tokens_per_second:,.0f} tokens/s"
        figure.update_layout(title={"text": state, "font": {"size": 13}})
        bundle = {"application/vnd.plotly.v1+json": json.loads(figure.to_json()), "text/plain": state}
        if last:  # with whatever else the reader's renderer adds, such as a still picture
            bundle |= figure._repr_mimebundle_() or {}
        handle.update(bundle, raw=True)  # in place; a Figure itself would be shown once more

    return draw
