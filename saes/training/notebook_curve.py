"""A training curve that redraws itself while the cell runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from attlas.data.progress import item_count
from attlas.saes.plots import training_figure

T = TypeVar("T")
REDRAW_SECONDS = 2.0


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def notebook_curve() -> NotebookCurve | None:
    """A track that draws the curve under the running cell; None outside of notebooks."""
    return NotebookCurve() if in_notebook() else None


class NotebookCurve:
    """A `Track` (attlas.data.progress) that shows rows of its news as a figure under the cell, in place."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._handle = display(HTML("<em>training …</em>"), display_id=True)
        self._rows: list[dict[str, Any]] = []
        self._drawn = 0.0
        self._left: list[int] = []  # items that loops have yet to begin, outermost first

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        self._left.append(item_count(iterable, total) or 0)
        try:
            for item in iterable:
                self._left[-1] -= 1
                yield item
        finally:
            self._left.pop()

    def news(self, text: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self._rows.extend(dict(row) for row in rows)
        left = self._left[-1] if self._left else 0
        if self._rows and (left == 0 or time.monotonic() - self._drawn > REDRAW_SECONDS):
            self._drawn = time.monotonic()
            self._draw(left)

    def _draw(self, left: int) -> None:
        figure = training_figure(self._rows)
        row = self._rows[-1]
        state = f"{row['step']:,} of {row['step'] + left:,} steps, {row['tokens_per_second']:,.0f} tokens/s"
        figure.update_layout(title={"text": state, "font": {"size": 13}})
        bundle = {"application/vnd.plotly.v1+json": json.loads(figure.to_json()), "text/plain": state}
        if left == 0:  # with whatever else the reader's renderer adds, such as a still picture
            bundle |= figure._repr_mimebundle_() or {}
        self._handle.update(bundle, raw=True)  # in place; a Figure itself would be shown once more
