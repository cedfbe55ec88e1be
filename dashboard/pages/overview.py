"""Overview: what this workspace holds, its headline numbers, and what to run next."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.dashboard.components import card, columns, empty, heading, metric_cards, tag
from attlas.dashboard.notes import noted
from attlas.dashboard.page import Data, Page, Params, link
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.run_kinds import KINDS, headline
from attlas.dashboard.theme import Theme
from attlas.data.workspace import Run

# What a workspace is worth having of everything, in the order to run it.
_NEXT = ("sae", "sae_eval", "features", "entropy", "redundancy", "drop_curve", "patching", "vit", "vit_patterns")

MOST_NOTES = 12
# key → (label, unit, the kind of run it is of, its name in that run's summary); each card says what it was measured on.
_NUMBERS = {
    "ce_recovered": ("CE loss recovered", "of the loss that zeroing the layer costs", "sae_eval", "ce_recovered"),
    "explained_variance": ("Explained variance", "of the attention output", "sae_eval", "explained_variance"),
    "l0": ("L0", "features active a token", "sae_eval", "l0"),
    "features": ("Features", "in the dictionary", "features", "n_features"),
    "dead_fraction": ("Dead features", "fraction that never fired", "features", "dead_fraction"),
    "induction_head": ("Induction head", "layer.head, highest on repeated tokens", "heads", "top_induction_head"),
    "top_vit_head": ("ViT head that matters", "layer.head, pruned alone", "vit", "top_head"),
}


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Runs, newest first, and the newest headline numbers of the chosen model, each with what it was measured on."""
    model = params.get("model")
    runs = reader.runs(model=model)
    newest: dict[str, Run] = {}
    for run in runs:
        newest.setdefault(run.kind, run)
    saes = {run.id: run for run in runs if run.kind == "sae"}
    return {
        "model": model,
        "runs": [
            {
                "id": run.id,
                "kind": run.kind,
                "model": run.model.name,
                "data": run.data.name if run.data else None,
                "created": run.created,
                "headline": headline(run),
                "attlas_version": run.attlas_version,
            }
            for run in runs
        ],
        "numbers": {
            key: newest[kind].summary.get(name) if kind in newest else None
            for key, (_, _, kind, name) in _NUMBERS.items()
        },
        "about": {
            key: {"run": newest[kind].id, "text": _subject(newest[kind], saes)}
            for key, (_, _, kind, _) in _NUMBERS.items()
            if kind in newest
        },
        "notes": noted(reader, model)[:MOST_NOTES],
        "missing": [kind for kind in _NEXT if kind not in newest],
    }


def _subject(run: Run, saes: dict[str, Run]) -> str:
    """What a run measured: the autoencoder's hook (or the model), and the data."""
    hook = next((str(saes[id].summary.get("hook")) for id in run.parents if id in saes), None)
    return ", ".join(part for part in (hook, run.model.name, run.data.name if run.data else None) if part)


def view(data: Data, theme: Theme) -> Any:
    """Headline numbers, cards that lead on, the list of runs."""
    lead = heading("Overview", "What the heads, layers and sparse features of your models do.")
    if not data["runs"] and data["model"]:
        how = f"attlas train --model {data['model']}\nattlas entropy --model {data['model']}"
        return html.Div([lead, empty(f"Nothing of {data['model']} yet", "Begin with one of these:", how), _doors(data)])
    if not data["runs"]:
        how = "Run the whole job on the embedded models, in minutes:"
        return html.Div([lead, empty("This workspace is empty", how, "attlas demo")])
    numbers, about = data["numbers"], data["about"]
    cards = [
        (label, numbers[key], f"{unit} · {about[key]['text']}" if key in about else unit)
        for key, (label, unit, _, _) in _NUMBERS.items()
    ]
    return html.Div(
        [
            lead,
            metric_cards(cards),
            _notes(data["notes"]),
            columns(_doors(data), _next(data)),
            card("Runs", html.Ul([_run(run) for run in data["runs"]], className="runs"), note="Newest first."),
        ]
    )


def _notes(notes: list[Data]) -> Any:
    """Starred and labelled features and heads."""
    if not notes:
        return None
    items = [
        html.Li(
            [
                dcc.Link(n["name"], href=n["href"], className="door") if n["href"] else html.Span(n["name"]),
                html.Div([html.Span(n["shown"]), html.Div(n["of"], className="sub")]),
            ]
        )
        for n in notes
    ]
    return card("Notes", html.Ul(items, className="runs"), note="Starred first, then the newest.")


def _doors(data: Data) -> Any:
    kinds = {run["kind"] for run in data["runs"]}
    doors = [
        ("/features", "Features", "What each sparse feature fires on, which head wrote it, what it promotes."),
        ("/text", "Your text", "Which features fire on a text you type, and what made them fire."),
        ("/survey", "Survey", "What each head is for; how two autoencoders compare."),
        ("/layers", "Layers", "How sharply each head attends, and which layers do little."),
        ("/health", "Health", "Heads over training, collapse, windows, cost."),
        ("/prune", "Prune", "What dropping layers and heads costs, and its side effects."),
        ("/circuit", "Circuit", "A prompt traced back through features, heads and tokens."),
        ("/vit", "ViT heads", "Which heads of a vision model matter, how far they attend, what they draw."),
        ("/image", "Image", "A picture under every head; the model without some of its heads."),
        ("/training", "Training", "Curves of every autoencoder."),
        ("/evaluation", "Evaluation", "Autoencoders beside their controls, with intervals."),
    ]
    shown = {KINDS[kind].path for kind in kinds & KINDS.keys()} | {"/circuit", "/image", "/text"}  # these need no run
    items = [
        html.Li(
            [dcc.Link(name, href=link(path, model=data["model"]), className="door"), html.Span(text, className="sub")]
        )
        for path, name, text in doors
        if path in shown
    ]
    return card("Where to look", html.Ul(items, className="runs"))


def _next(data: Data) -> Any:
    if not data["missing"]:
        text = "Everything has been run once. Other models and layers are one command away:"
        commands = ["attlas models get smollm2-135m", "attlas train --model smollm2-135m --hooks blocks.5.attn.hook_z"]
    else:
        text = "Not in this workspace yet:"
        commands = [KINDS[kind].command for kind in data["missing"][:4]]
    return card("What to run next", html.P(text, className="note"), *[html.Pre(html.Code(c)) for c in commands])


def _run(run: dict[str, Any]) -> html.Li:
    kind = KINDS.get(run["kind"])
    title: Any = html.Span(run["kind"])
    if kind is not None:
        title = dcc.Link(kind.name, href=link(kind.path, run=run["id"], model=run["model"], **kind.query))
    about = [run["model"], run["data"], run["created"][:16].replace("T", " ") + " UTC"]
    return html.Li(
        [
            tag(run["kind"]),
            html.Div(
                [
                    html.Div([title, html.Span(f"  {run['headline']}")]),
                    html.Div(" · ".join(part for part in about if part), className="sub"),
                ]
            ),
        ]
    )


PAGE = Page("/", "Overview", data, view)
