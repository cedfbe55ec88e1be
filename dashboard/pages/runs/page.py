"""Runs: what was computed, by which settings, from what; named, starred, deleted and had back."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.dashboard.components import (
    button_link,
    card,
    columns,
    empty,
    heading,
    note_card,
    picker,
    short,
    table,
    text_box,
)
from attlas.dashboard.components.run_list import run_item
from attlas.dashboard.notes import note_data, run_names
from attlas.dashboard.page import Data, Page, Params, link
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.run_kinds import headline, kind_name, listed, place_of
from attlas.dashboard.theme import Theme
from attlas.data.notes import run_subject
from attlas.data.runs.trash import runs_away
from attlas.data.workspace import Run

MOST = 200  # runs of the list


def data(reader: WorkspaceReader, params: Params) -> Data:
    """The list, narrowed by model, kind and words; the chosen run; those that were deleted."""
    runs = reader.runs(model=params.get("model"))
    names = run_names(reader)
    kinds = sorted({run.kind for run in runs})
    kind = params.get("kind") if params.get("kind") in kinds else ""
    words = params.get("q", "").lower().split()
    wanted = [run for run in runs if kind in ("", run.kind) and _holds(run, names.get(run.id, ""), words)]
    chosen = next((run for run in reader.runs() if run.id == params.get("run")), None)
    return {
        "model": params.get("model"),
        "kind": kind,
        "kinds": kinds,
        "q": params.get("q", ""),
        "runs": [listed(run, names) for run in wanted[:MOST]],
        "n_runs": len(wanted),
        "run": None if chosen is None else _whole(reader, chosen, names),
        "away": [listed(away.run, names) | {"since": away.since} for away in runs_away(reader.workspace)],
    }


def _holds(run: Run, name: str, words: list[str]) -> bool:
    text = f"{run.id} {run.kind} {name} {run.model.name} {run.data.name if run.data else ''} {headline(run)}".lower()
    return all(word in text for word in words)


def _whole(reader: WorkspaceReader, run: Run, names: dict[str, str]) -> Data:
    there = {r.id for r in reader.runs()}
    return listed(run, names) | {
        "note": note_data(reader, run_subject(run.id)),
        "seed": run.seed,
        "parents": [{"id": id, "here": id in there, "name": names.get(id, "")} for id in run.parents],
        "children": [listed(r, names) for r in reader.runs() if run.id in r.parents],
        "summary": {k: v for k, v in run.summary.items() if not isinstance(v, (dict, list)) or len(str(v)) < 200},
        "config": run.config,
        "folder": str(reader.workspace.folder(run)),
    }


def view(data: Data, theme: Theme) -> Any:
    """The chosen run above the list."""
    lead = "Everything that was computed in this workspace. The label opens a run's settings, the title its page."
    kinds = [("", "every kind"), *[(k, kind_name(k)) for k in data["kinds"]]]
    controls = [picker("kind", "Kind", kinds, data["kind"], "")]
    more = f"The newest {MOST} of {data['n_runs']:,}." if data["n_runs"] > MOST else "Newest first."
    items = [run_item(run) for run in data["runs"]]
    return html.Div(
        [
            heading("Runs", lead, button_link("Compare", link("/compare"))),
            _chosen(data["run"]),
            card(
                "Runs",
                text_box("q", "Words (of an id, a name, a model, a number)", data["q"], lines=1),
                html.Ul(items, className="runs") if items else _none(data),
                note=more if items else "",
                controls=controls,
            ),
            _deleted(data["away"]),
        ]
    )


def _none(data: Data) -> Any:
    if data["q"] or data["kind"]:
        return html.P("No run holds these words.", className="note")
    return empty("No runs yet", "Run the whole job on the embedded models, in minutes:", "attlas demo")


def run_button(text: str, action: str, run: str) -> html.Button:
    """A button that deletes a run or has it back (see `pages/runs/acts.py`)."""
    return html.Button(text, id={"type": "run", "action": action, "run": run}, className="button")


def _chosen(run: Data | None) -> Any:
    if run is None:
        return html.Div(className="job-place")
    controls = [
        button_link("Open", place_of(run["kind"], run["id"], run["model"])),
        button_link("Compare", link("/compare", runs=run["id"])),
        run_button("Delete", "delete", run["id"]),
    ]
    kin = [
        *[html.Li([html.Span("made from ", className="sub"), _kin(p)]) for p in run["parents"]],
        *[html.Li([html.Span("gave ", className="sub"), _kin(c | {"here": True})]) for c in run["children"]],
    ]
    settings = [{"name": k, "value": _told(v)} for k, v in run["config"].items()]
    numbers = [{"name": k, "value": _told(v)} for k, v in run["summary"].items()]
    names = {"name": "setting", "value": "value"}
    seed = "" if run["seed"] is None else f", seed {run['seed']}"
    about = (
        f"{run['id']}: {run['model']}{', ' + run['data'] if run['data'] else ''}{seed}, by Attlas "
        f"{run['attlas_version']}, {run['created'][:16].replace('T', ' ')} UTC, {run['bytes'] / 1e6:.1f} MB in {run['folder']}"
    )
    return html.Div(
        [
            card(
                run["name"] or kind_name(run["kind"]),
                html.Ul(kin, className="plain") if kin else None,
                note=about,
                controls=controls,
            ),
            html.Div(note_card(run["note"]), className="columns one"),
            columns(
                card("Settings", table(settings, names, summary="Every setting", open_=True)),
                card(
                    "Numbers", table(numbers, {"name": "number", "value": "value"}, summary="Every number", open_=True)
                ),
            ),
        ],
        key=run["id"],
        className="chosen-run",
    )


def _kin(run: Data) -> Any:
    text = f"{run['name']} ({run['id']})" if run["name"] else run["id"]
    return dcc.Link(text, href=link("/runs", run=run["id"])) if run["here"] else html.Span(f"{text}, not here any more")


def _told(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return short(value)
    return "—" if value is None or value == [] else str(value)


def _deleted(away: list[Data]) -> Any:
    if not away:
        return None
    items = [run_item(run, run_button("Restore", "restore", run["id"])) for run in away[:MOST]]
    size = sum(run["bytes"] for run in away) / 1e6
    note = f"They can be had back until `attlas runs purge` frees their {size:.1f} MB."
    return card("Deleted", html.Ul(items, className="runs"), note=note)


PAGE = Page("/runs", "Runs", data, view)
