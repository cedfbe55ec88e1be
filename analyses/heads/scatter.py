"""What is said and drawn of heads by their scores, whether measured here or read from a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attlas.data.figures import new_figure


def scatter(scores: Mapping[str, np.ndarray], names: Sequence[str], x: str, y: str, colour: str) -> Any:
    """A plotly Figure of all heads.

    Args:
        scores: name → float [n_heads]; for one that holds no number, the first that does is shown.
        names: of the heads, such as "3.0".
        x, y, colour: names of scores.
    """
    import plotly.graph_objects as go

    known = [name for name, values in scores.items() if not np.isnan(values).all()]
    x, y, colour = (name if name in known else (known or [name])[0] for name in (x, y, colour))
    marker = {"color": scores[colour], "showscale": True, "size": 9}
    figure = new_figure(go.Scatter(x=scores[x], y=scores[y], text=list(names), mode="markers", marker=marker))
    figure.update_traces(hovertemplate="%{text}<br>%{x:.3f}, %{y:.3f}")
    words = {name: name.replace("_", " ") for name in (x, y, colour)}
    return figure.update_layout(xaxis_title=words[x], yaxis_title=words[y], title=f"heads, coloured by {words[colour]}")


def top_heads(scores: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, str]:
    """For the summary of a run: the heads of the largest induction and previous-token scores, where these are known.

    Induction is that on repeated random tokens; of trees of HeadVis, which lack it, that on the corpus.

    Args:
        scores: name → float [n_heads].
        names: of the heads.
    """
    induction = scores.get("repeat_induction")
    if induction is None or np.isnan(induction).all():  # a tree that was read
        induction = scores.get("induction_score")
    shown = {"top_induction_head": induction, "top_prev_token_head": scores.get("prev_token_score")}
    return {
        key: names[int(np.nanargmax(values))]
        for key, values in shown.items()
        if values is not None and not np.isnan(values).all()
    }
