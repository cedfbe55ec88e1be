"""A text of one's own under a head, as its sequences are: read by the script `assets/gallery.js` from the JSON."""

from __future__ import annotations

from typing import Any

from dash import html

from attlas.analyses import heads as of_heads
from attlas.dashboard.components import attributes, empty, heading
from attlas.dashboard.jobs import Job
from attlas.dashboard.page import Data, Page, Params, integer, link
from attlas.dashboard.pages.heads.sequences import SCALE, as_sequence
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme

SECONDS = 120.0


def data(reader: WorkspaceReader, params: Params) -> Data:
    """What a head attends to in a text, cut to the model's context window; live work."""
    model, text = params.get("model", ""), params.get("text", "")
    layer, head = integer(params, "layer") or 0, integer(params, "head") or 0
    found: Data = {
        "model": model,
        "layer": layer,
        "head": head,
        "scale": SCALE,
        "sequences": [],
        "total": 0,
        "next": None,
    }
    if not model or not text.strip():
        return found

    def work(job: Job) -> Any:
        hooked = reader.jobs.model(model)
        job.check()
        whole = hooked.to_tokens(text)
        tokens = whole[:, : hooked.cfg.n_ctx]
        edges = of_heads.text_edges(hooked, tokens, layer, head)
        return hooked.to_str_tokens(tokens), edges, whole.shape[1]

    title = f"your text under head {layer}.{head} of {model}"
    job = reader.jobs.job(("own text", model, layer, head, text), title, work, seconds=SECONDS)
    found |= {"job": job.describe(), "live": job.poll()}
    if job.result is None:
        return found
    tokens, edges, n = job.result
    title = "Your text" if n == len(tokens) else f"The first {len(tokens):,} of {n:,} tokens of your text"
    inner = (edges.query > 0) & (edges.key > 0)
    row = {
        **{"interval": 0, "rank": 0, "sequence": -1, "strength": float(edges.weight[inner].max(initial=0.0))},
        **{"query": edges.query, "key": edges.key, "weight": edges.weight},
    }
    return found | {"sequences": [as_sequence(row, tokens) | {"own": title}], "total": 1, "n_intervals": 1}


def own_gallery(data: Data) -> html.Div:
    """Where the script draws the text."""
    place = {name: data[name] for name in ("model", "layer", "head")}
    source = link("/api/head-text", **place, text=data["text"], wait=SECONDS, limit=1)
    return html.Div(className="gallery", **attributes({"data-gallery": source}))


def view(data: Data, theme: Theme) -> Any:
    """The text alone."""
    if not data["sequences"]:
        return html.Div(
            [
                heading("A text under a head"),
                empty(
                    "No text yet", "Type one on a head's page; for heads with sequences of a corpus:", "attlas heads"
                ),
            ]
        )
    return html.Div([heading(f"A text under head {data['layer']}.{data['head']} of {data['model']}")])


PAGE = Page("/head-text", "A text under a head", data, view, nav=False)
