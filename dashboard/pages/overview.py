"""Overview: models, what was computed of them, what is missing with its command, and what people marked."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.dashboard.components import button_link, card, columns, empty, heading, metric_cards, short
from attlas.dashboard.components.run_list import run_item
from attlas.dashboard.notes import noted, run_names
from attlas.dashboard.page import Data, Page, Params, link
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.run_kinds import KINDS, kind_name, listed, place_of
from attlas.dashboard.theme import Theme
from attlas.data.models_catalog import catalog
from attlas.data.workspace import Run

# What a model is worth having of everything, in the order to run it.
TEXT_KINDS = ("sae", "sae_eval", "features", "entropy", "heads", "redundancy", "drop_curve", "patching")
VISION_KINDS = ("vit", "vit_patterns", "heads", "redundancy", "sae", "features")
MOST_NOTES, MOST_RUNS, MOST_JOBS = 12, 12, 8
# key → (label, unit, the kind of run it is of, its name in that run's summary); cards of one subject stand together.
_NUMBERS = {
    "ce_recovered": ("CE loss recovered", "of the loss that zeroing the layer costs", "sae_eval", "ce_recovered"),
    "explained_variance": ("Explained variance", "of the attention output", "sae_eval", "explained_variance"),
    "l0": ("L0", "features active a token", "sae_eval", "l0"),
    "features": ("Features", "in the dictionary", "features", "n_features"),
    "dead_fraction": ("Dead features", "share that never fired", "features", "dead_fraction"),
    "induction_head": ("Induction head", "layer.head, highest on repeated tokens", "heads", "top_induction_head"),
    "top_vit_head": ("ViT head that matters", "layer.head, pruned alone", "vit", "top_head"),
}


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Models with what is there and missing; newest headline numbers, each with what it was measured on; runs, notes, jobs."""
    model = params.get("model")
    runs = reader.runs(model=model)
    newest: dict[str, Run] = {}
    for run in runs:
        newest.setdefault(run.kind, run)
    names = run_names(reader)
    saes = {run.id: run for run in runs if run.kind == "sae"}
    return {
        "model": model,
        "models": _models(reader, runs, model),
        "n_runs": len(runs),
        "runs": [listed(run, names) for run in runs[:MOST_RUNS]],
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
        "jobs": reader.jobs.history()[:MOST_JOBS],
    }


def _subject(run: Run, saes: dict[str, Run]) -> str:
    """What a run measured: the autoencoder's hook (or the model), and the data."""
    hook = next((str(saes[id].summary.get("hook")) for id in run.parents if id in saes), None)
    return ", ".join(part for part in (hook, run.model.name, run.data.name if run.data else None) if part)


def _models(reader: WorkspaceReader, runs: list[Run], model: str | None) -> list[Data]:
    """Every model with runs, and those that can be loaded: kinds there with their newest run, kinds missing with a command."""
    cards = {card.name: card for card in catalog()}
    names = list(dict.fromkeys([*(run.model.name for run in runs), *reader.jobs.names()]))
    found = []
    for name in names:
        if model not in (None, name):
            continue
        mine = [run for run in runs if run.model.name == name]
        there: dict[str, str] = {}
        for run in mine:
            there.setdefault(run.kind, run.id)
        vision = cards[name].family == "vit" if name in cards else any(kind.startswith("vit") for kind in there)
        missing = [kind for kind in (VISION_KINDS if vision else TEXT_KINDS) if kind not in there]
        found.append(
            {
                "name": name,
                "shape": cards[name].shape if name in cards else "",
                "n_runs": len(mine),
                "there": there,
                "missing": [{"kind": kind, "command": command(kind, name)} for kind in missing],
            }
        )
    return found


def command(kind: str, model: str) -> str:
    """The command that makes a run of a kind for a model."""
    words = KINDS[kind].command.split()
    if "--model" in words:
        words[words.index("--model") + 1] = model
        return " ".join(words)
    return f"{' '.join(words)} --model {model}"


def view(data: Data, theme: Theme) -> Any:
    """Headline numbers, models, what is marked and what ran, the newest runs."""
    lead = heading("Overview", "What the heads, layers and sparse features of your models do.")
    if not data["n_runs"] and data["model"]:
        how = f"attlas train --model {data['model']}\nattlas entropy --model {data['model']}"
        return html.Div([lead, empty(f"Nothing of {data['model']} yet", "Begin with one of these:", how)])
    if not data["n_runs"]:
        how = "Run the whole job on the embedded models, in minutes:"
        return html.Div([lead, empty("This workspace is empty", how, "attlas demo")])
    more = button_link(f"All {data['n_runs']:,} runs", link("/runs", model=data["model"]))
    return html.Div(
        [
            lead,
            *_headlines(data),
            _model_list(data["models"]),
            columns(_notes(data["notes"]), _jobs(data["jobs"])) if data["notes"] or data["jobs"] else None,
            card(
                "Newest runs",
                html.Ul([run_item(run) for run in data["runs"]], className="runs"),
                controls=[more],
            ),
        ]
    )


def _headlines(data: Data) -> list[Any]:
    """Cards of one subject under its name: numbers of two runs never stand in one row."""
    by_subject: dict[str, list[str]] = {}
    for key in _NUMBERS:
        if key in data["about"] and data["numbers"][key] is not None:
            by_subject.setdefault(data["about"][key]["text"], []).append(key)
    found = []
    for subject, keys in by_subject.items():
        cards = [(_NUMBERS[key][0], data["numbers"][key], _NUMBERS[key][1]) for key in keys]
        found.append(
            html.Div(
                [html.H2(subject, className="subject"), metric_cards(cards)],
                className="headline" + (" many" if len(keys) > 3 else ""),
            )
        )
    return [html.Div(found, className="headlines")] if found else []


def _model_list(models: list[Data]) -> Any:
    items = [html.Li([_model_name(m), html.Div([_there(m), _missing(m)])]) for m in models]
    note = "What was computed, newest first, and under “missing” the commands for the rest."
    return card("Models", html.Ul(items, className="runs models"), note=note)


def _model_name(model: Data) -> Any:
    inner = [dcc.Link(model["name"], href=link("/", model=model["name"]), className="door")]
    return html.Div([*inner, html.Div(model["shape"], className="sub")])


def _there(model: Data) -> Any:
    chips = []
    for kind, run in model["there"].items():
        href = place_of(kind, run, model["name"]) or link("/runs", run=run)
        chips.append(dcc.Link(kind_name(kind), href=href, className="tag"))
    return html.Div(chips or html.Span("no runs yet", className="sub"), className="tags")


def _missing(model: Data) -> Any:
    if not model["missing"]:
        return None
    names = ", ".join(kind_name(m["kind"]).lower() for m in model["missing"])
    commands = html.Pre(html.Code("\n".join(m["command"] for m in model["missing"])), tabIndex=0)
    return html.Details([html.Summary(f"missing: {names}"), commands], className="missing")


def _notes(notes: list[Data]) -> Any:
    """Starred and labelled features, heads and runs."""
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


def _jobs(jobs: list[Data]) -> Any:
    """What pages asked models for since the server started."""
    if not jobs:
        return None
    items = [
        html.Li(
            [
                html.Span(job["state"], className="tag" + (" accent" if job["ended"] is None else "")),
                html.Div([job["title"], html.Div(_took(job), className="sub")]),
            ]
        )
        for job in jobs
    ]
    return card("Recent jobs", html.Ul(items, className="runs"), note="Work on models since the server started.")


def _took(job: Data) -> str:
    return job["error"] or (f"{short(job['took'])} s" if job["took"] is not None else job["note"])


PAGE = Page("/", "Overview", data, view)
