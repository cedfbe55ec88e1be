"""One head: its numbers and label, how its attention spreads, its history, and its map of any text, computed on demand."""

from __future__ import annotations

from typing import Any

import numpy as np
from dash import dcc, html

from attlas.dashboard.components import (
    button_link,
    card,
    columns,
    empty,
    heading,
    job_panel,
    metric_cards,
    note_card,
    picker,
    table,
    tag,
    text_box,
)
from attlas.dashboard.components import head_figures as views
from attlas.dashboard.jobs import Job
from attlas.dashboard.notes import note_data
from attlas.dashboard.page import Data, Page, Params, integer, link
from attlas.dashboard.pages.heads import account, own_text, projections, sequences, worth
from attlas.dashboard.pages.heads.metrics import METRICS, head_rows, named
from attlas.dashboard.pages.heads.numbers import OTHER_KINDS, Heads, all_numbers, with_atlas
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.notes import head_subject

MOST_TOKENS = 96
EXAMPLES = {
    "names": "When Mary and John went to the store, John gave a drink to Mary. Then Mary and John went home.",
    "repeat": "one seven blue harbour nine copper lantern, and again: one seven blue harbour nine copper lantern",
    "prose": "The old bridge over the river had been closed since the flood, and nobody in the town could say when it "
    "would open again.",
}
MOST_CARDS = 7
# The first of these that have been measured: of entropy and anatomy, then of the heads run.
_CARDS = (
    *("entropy", "normalized", "sink_mass", "previous_token", "repeat_induction", "induction", "mean_distance"),
    *("pattern_entropy", "self_attention_score", "prev_token_score", "induction_score", "qk_distance", "output_ratio"),
    *("active", "unexplained"),
)
_SCORES = ("induction", "previous_token", "duplicate_token")


def data(reader: WorkspaceReader, params: Params) -> Data:
    """The rows of one head, and the work that draws its map."""
    model = params.get("model")
    entropy, anatomy = (reader.pick(kind, params.get("run"), model) for kind in ("entropy", "anatomy"))
    atlas = reader.pick("heads", params.get("run"), model)
    newest = entropy or anatomy or atlas
    model = model or (newest.model.name if newest else None)
    if anatomy and anatomy.model.name != model:
        anatomy = reader.pick("anatomy", None, model)
    if atlas and atlas.model.name != model:
        atlas = reader.pick("heads", None, model)
    heads, metrics = with_atlas(reader, atlas, *head_rows(reader, entropy, anatomy))
    if not heads:  # known by its weights or effects alone
        newest = next((run for kind in OTHER_KINDS if (run := reader.pick(kind, None, model))), None)
        model = model or (newest.model.name if newest else None)
        every = all_numbers(reader, model, None) if model else Heads({}, {})
        heads, metrics = list(every.rows.values()), [name for name in every.numbers if name in METRICS]
    places = [(row["layer"], row["head"]) for row in heads]
    layer, head = integer(params, "layer"), integer(params, "head")
    place = (layer or 0, head or 0)
    shown = next((row for row in heads if (row["layer"], row["head"]) == place), None)
    found: Data = {
        "model": model,
        "layer": place[0],
        "head": place[1],
        "places": places,
        "entropy_run": entropy.id if entropy else None,
        "anatomy_run": anatomy.id if anatomy else None,
        "run": atlas.id if atlas else None,
        "numbers": shown,
        "metrics": metrics,
        "beside": [row for row in heads if row["layer"] == place[0]],
        "vision": bool(reader.pick("vit", None, model)) if model else False,
    }
    if shown is None:
        return found
    found["note"] = note_data(reader, head_subject(str(model), *place))
    one = {"layer": place[0], "head": place[1]}
    by = params.get("by", "")
    found["by"] = by if by in sequences.BY else "weight"
    found["sequence"] = integer(params, "sequence")
    found["grid"] = atlas.summary.get("grid") if atlas else None
    found["account"] = account.data(reader, atlas, *place)
    found |= worth.data(reader, model, *place) | projections.of_head(reader, model, atlas)
    found |= sequences.top_tokens(reader, atlas, *place, found["by"])
    timeline = reader.pick("timeline", params.get("run"), model)
    found["masses"] = reader.rows(anatomy, "map_mass", ("kind", "at"), **one)
    found["received"] = reader.rows(anatomy, "map_columns", ("position",), **one)
    found["timeline"] = reader.rows(timeline, "timeline", ("step",), **one)
    scores = ("previous_token", "prev_token_score")
    if atlas:  # a tree that was read may lack any score
        found["vision"] = bool(found["grid"])
    found["vision"] = found["vision"] or (not atlas and all(shown.get(name) is None for name in scores))
    asked = any(params.get(name) for name in ("text", "example", "to"))
    if found["vision"] or (atlas and not asked):  # what a corpus shows comes first, and does not wait for a model
        return found | {"example": "", "text": ""}
    return found | _live(reader, params, str(model), place)


def _live(reader: WorkspaceReader, params: Params, model: str, place: tuple[int, int]) -> Data:
    example = params.get("example", "names")
    example = example if example in EXAMPLES else "names"
    text = params.get("text") or EXAMPLES[example]

    def work(job: Job) -> dict[str, Any]:
        hooked = reader.jobs.model(model)
        job.check()
        tokens = hooked.to_tokens(text)[:, :MOST_TOKENS]
        name = f"blocks.{place[0]}.attn.hook_pattern"
        return {"tokens": hooked.to_str_tokens(tokens), "patterns": hooked.capture(tokens, name)[name][0].cpu().numpy()}

    title = f"attention of layer {place[0]} of {model}"
    job = reader.jobs.job(("attention", model, place[0], text), title, work, seconds=60)
    found: Data = {"example": example, "text": params.get("text", ""), "job": job.describe(), "live": job.poll()}
    result = job.result
    if result is None:
        return found
    pattern = result["patterns"][place[1]].astype(np.float64)
    row_entropy = -(pattern * np.log(np.maximum(pattern, 1e-30))).sum(-1)
    n = len(result["tokens"])
    at = (params.get("to") or "").split(":")[0]
    found["tokens"], found["pattern"] = result["tokens"], np.round(pattern, 6)
    found["row_entropy"] = np.round(row_entropy, 5)
    found["to"] = min(int(at), n - 1) if at.isdecimal() else n - 1
    return found


def view(data: Data, theme: Theme) -> Any:
    """Numbers and pickers, then the map, then distributions, then history."""
    if data["numbers"] is None:
        return _absent(data)
    label = data["numbers"].get("label")
    title = f"Head {data['layer']}.{data['head']}"
    lead = f"How one head of {data['model']} attends."
    return html.Div(
        [
            heading(title, lead, *_pickers(data)),
            _labelled(data["numbers"]) if label else None,
            *_on_corpus(data, theme),
            columns(projections.projection_card(data)),
            columns(*worth.cards(data)),
            _numbers(data),
            _vision(data) if data["vision"] else _map(data, theme),
            _distributions(data, theme),
            _history(data, theme),
            html.Div(note_card(data["note"]), className="columns one"),
        ]
    )


def _on_corpus(data: Data, theme: Theme) -> list[Any]:
    """What it does on a whole corpus: its account, the sequences that show it, its tokens."""
    if not data["run"]:
        command = f"attlas heads --model {data['model']}"
        return [empty("Not read over a corpus yet", "What it is spent on, and sequences that show it:", command)]
    cards = (sequences.sequences_card(data), account.account_card(data, theme), sequences.tokens_card(data))
    return [columns(part) for part in cards if part is not None]


def _absent(data: Data) -> Any:
    if not data["places"]:
        where = f" of {data['model']}" if data["model"] else ""
        return html.Div(
            [
                heading("Head", "How one head attends."),
                empty(f"No heads{where} yet", "Measure how every head attends:", "attlas entropy --model gpt2-mini"),
            ]
        )
    to_layers = dcc.Link("all heads", href=link("/heads", model=data["model"]))
    return html.Div(
        [
            heading(
                f"No head {data['layer']}.{data['head']}",
                f"{data['model']} has heads up to {'.'.join(map(str, data['places'][-1]))}.",
            ),
            html.P(["Choose one from ", to_layers, "."]),
        ]
    )


def _pickers(data: Data) -> list[Any]:
    layers = sorted({layer for layer, _ in data["places"]})
    heads = sorted(head for layer, head in data["places"] if layer == data["layer"])
    at = [tuple(place) for place in data["places"]].index((data["layer"], data["head"]))
    near = [data["places"][i] if 0 <= i < len(data["places"]) else None for i in (at - 1, at + 1)]
    hrefs = [link("/head", model=data["model"], layer=p[0], head=p[1]) if p else None for p in near]
    here = f"{data['layer']}.{data['head']}"
    steer = [] if data.get("vision") else [button_link("Steer", link("/steer", heads=here, model=data["model"]))]
    return [
        picker("layer", "Layer", [(str(i), str(i)) for i in layers], str(data["layer"]), "0"),
        picker("head", "Head", [(str(i), str(i)) for i in heads], str(data["head"]), "0"),
        *steer,
        button_link("All heads", link("/heads", model=data["model"])),
        button_link("Head before", hrefs[0], rel="prev"),
        button_link("Next head", hrefs[1], rel="next"),
    ]


def _labelled(row: Row) -> Any:
    score = row.get("label_score")
    note = f" score {score:.2f}" if score is not None else " no score passes its threshold"
    return html.P([tag(row["label"]), html.Span(note, className="note")], className="labelled")


def _numbers(data: Data) -> Any:
    row = data["numbers"]
    shown = [metric for metric in _CARDS if row.get(metric) is not None][:MOST_CARDS]
    cards = metric_cards([(named(m)[0], row.get(m), named(m)[1]) for m in shown])
    full = [{"score": named(m)[0], "value": row.get(m), "unit": named(m)[1]} for m in data["metrics"]]
    names = {"score": "score", "value": "value", "unit": "unit"}
    return html.Div([cards, table(full, names, summary="Every score of this head")])


def _vision(data: Data) -> Any:
    href = link("/vit-head", model=data["model"], layer=data["layer"], head=data["head"])
    words: list[Any] = [
        "This head attends to image patches. ",
        dcc.Link("Its mean map, rings and importance", href=href),
        ".",
    ]
    return columns(card("Its maps", html.P(words), span=2))


def _map(data: Data, theme: Theme) -> Any:
    options = [("names", "Names"), ("repeat", "A repeated list"), ("prose", "A sentence")]
    none = "" if data["run"] else "names"
    controls = [
        picker("example", "Example", options if none else [("", "None"), *options], data["example"], none),
        text_box("text", "Your text", data["text"], hint=EXAMPLES[data["example"] or "names"]),
    ]
    parts = [*controls, job_panel(data["job"]) if "job" in data else None]
    note = (
        f"Weights for the text as it is now, at most {MOST_TOKENS} tokens. Rows attend to columns; hover for the tokens, "
        "click a row to read it below."
    )
    if data["run"] and data["text"]:
        parts.append(own_text.own_gallery(data))
    if "pattern" not in data:
        return columns(card("Its map of a text", *parts, note=note, span=2))
    tokens, to = data["tokens"], data["to"]
    weights = data["pattern"][to]
    entropy = data["row_entropy"][to]
    said = f"Token {to}, {views.visible(tokens[to])!r}, attends with an entropy of {entropy:.3f} nats to:"
    return html.Div(
        [
            columns(
                card(
                    "Its map of a text", *parts, views.attention(tokens, data["pattern"], to, theme), note=note, span=2
                )
            ),
            columns(
                card("One row", html.P(said, className="note"), views.tinted(tokens, weights, to)),
                card(
                    "Entropy of each row",
                    views.row_entropy(tokens, data["row_entropy"], theme),
                    note="Nats by position; the faint line is log n, attention spread evenly over what the row may see.",
                ),
            ),
        ]
    )


def _distributions(data: Data, theme: Theme) -> Any:
    spread = None
    if data["numbers"].get("q50") is not None:
        spread = card(
            "Entropy over queries",
            views.quantiles(data["beside"], data["head"], theme),
            note="5, 25, 50, 75 and 95 % quantiles, nats; this head among those of its layer.",
        )
    if not data["masses"]:
        return columns(
            spread,
            empty(
                "No anatomy of its maps yet",
                "Distances, top keys, columns and a label:",
                f"attlas entropy anatomy --model {data['model']}",
            ),
        )
    return html.Div(
        [
            columns(spread, views.distance_card(data["masses"], theme)),
            columns(views.top_k_card(data["masses"], theme), views.received_card(data["received"], theme)),
        ]
    )


def _history(data: Data, theme: Theme) -> Any:
    if not data["timeline"]:
        return empty(
            "No history of it yet", "Measure checkpoints of its training:", "attlas entropy timeline --checkpoints DIR"
        )
    scored = [s for s in _SCORES if data["timeline"][-1].get(f"{s}_null") is not None]
    nulls = {f"{s}_null": f"{s.replace('_', ' ')}, null" for s in scored}
    return card(
        "Over training",
        views.history(data["timeline"], _SCORES, theme),
        table(
            data["timeline"],
            {"step": "step", "entropy": "entropy, nats", "lower_bound": "bound", **{s: s for s in _SCORES}, **nulls},
            summary="The numbers",
        ),
        note="Scores on repeated random tokens (left), entropy and its lower bound on the data in nats (right). The band is "
        "where a score passes its null (thin: queries turned at random, and other distances) to stay above: the head's birth.",
        span=2,
    )


PAGE = Page("/head", "Head", data, view, nav=False, preview=sequences.preview)
