"""Notes on the pages: what a page shows of one, where a note leads, and the callback that writes."""

from __future__ import annotations

import time
from typing import Any

import flask
from dash import ALL, Dash, Input, Output, State, ctx, no_update

from attlas.dashboard.page import Data, link
from attlas.dashboard.reader import WorkspaceReader
from attlas.data.notes import Note, NoteBook, feature_subject, parse_subject, write_groups
from attlas.data.workspace import Run
from attlas.errors import AttlasError


def book(reader: WorkspaceReader) -> NoteBook:
    """The notes of the workspace."""
    return NoteBook(reader.path)


def note_data(reader: WorkspaceReader, subject: str) -> Data:
    """A note as plain values, with the number of changes that can be undone."""
    found = book(reader)
    note = found.read(subject)
    return _plain(note) | {"n_changes": len(found.history(subject))}


def _plain(note: Note) -> Data:
    return {
        "subject": note.subject,
        "label": note.label,
        "star": note.star,
        "tags": list(note.tags),
        "comment": note.comment,
        "author": note.author,
        "written": note.written,
    }


def subject_of(run: Run, feature: int, saes: set[str]) -> str:
    """What a note on a feature of a features run is about: its autoencoder's run, else the features run itself."""
    return feature_subject(next((id for id in run.parents if id in saes), run.id), feature)


def labels(reader: WorkspaceReader, run: Run | None) -> dict[int, Data]:
    """feature → its note, for the features of a features run."""
    if run is None:
        return {}
    of = parse_subject(subject_of(run, 0, {r.id for r in reader.runs("sae")}))[1]
    return {parse_subject(note.subject)[2][0]: _plain(note) for note in book(reader).all("feature", of)}


def run_names(reader: WorkspaceReader) -> dict[str, str]:
    """Run → the name a person gave it."""
    return {parse_subject(note.subject)[1]: note.label for note in book(reader).all("run") if note.label}


def shown(note: Data | None) -> str:
    """A note in a cell: a star, the label, tags."""
    if note is None:
        return ""
    parts = ["★" if note["star"] else "", note["label"], *(f"#{tag}" for tag in note["tags"])]
    return " ".join(part for part in parts if part) or "…"


def words(note: Data) -> str:
    """What a search looks through, in small letters."""
    return f"{note['label']} {' '.join(note['tags'])} {note['comment']}".lower()


def noted(reader: WorkspaceReader, model: str | None = None) -> list[Data]:
    """Every note with a link to what it is about, starred ones first, then the newest; only those of a model, or all."""
    runs = {run.id: run for run in reader.runs()}
    found = []
    for note in sorted(book(reader).all(), key=lambda n: not n.star):
        kind, of, place = parse_subject(note.subject)
        owner = of if kind == "head" else (runs[of].model.name if of in runs else None)
        if model and owner != model:
            continue
        if kind == "head":
            name, href = f"Head {place[0]}.{place[1]}", link("/head", layer=place[0], head=place[1], model=of)
        elif kind == "run":
            name, href = "Run", link("/runs", run=of) if of in runs else ""
        else:
            told = next(
                (run.id for run in runs.values() if run.kind == "features" and of in (*run.parents, run.id)), None
            )
            name, href = f"Feature {place[0]}", link("/feature", run=told, id=place[0], model=owner) if told else ""
        hook = runs[of].summary.get("hook") if of in runs else None
        found.append(
            _plain(note) | {"name": name, "of": hook or of, "model": owner, "href": href, "shown": shown(_plain(note))}
        )
    return found


def write_notes(app: Dash, reader: WorkspaceReader) -> None:
    """Boxes write as they rest, the star and Undo as they are pressed; the page is then drawn with what is kept."""

    @app.callback(
        Output("acted", "data", allow_duplicate=True),
        Output("announce", "children", allow_duplicate=True),
        Input({"type": "note", "subject": ALL, "field": ALL}, "value"),
        Input({"type": "note", "subject": ALL, "field": ALL}, "n_clicks"),
        State({"type": "note", "subject": ALL, "field": ALL}, "id"),
        prevent_initial_call=True,
    )
    def write(_values: list[Any], _clicks: list[Any], _ids: list[Any]) -> tuple[Any, Any]:
        control, value = ctx.triggered_id, ctx.triggered[0]["value"] if ctx.triggered else None
        if not control or value is None:
            return no_update, no_update
        subject, field = control["subject"], control["field"]
        notes = book(reader)
        try:
            if field == "undo":
                notes.undo(subject)
            elif field == "star":
                notes.write(subject, star=not notes.read(subject).star)
            else:
                by = {"author": "person"} if field == "label" and value != notes.read(subject).label else {}
                notes.write(subject, **{field: value}, **by)
        except AttlasError as error:
            return no_update, str(error)
        return time.time(), f"{field} kept"


def serve_groups(server: flask.Flask, reader: WorkspaceReader) -> None:
    """Where a circuit's graph sends its groups when they change (assets/circuit.js)."""

    @server.post("/circuit-groups")
    def groups() -> flask.Response:
        told = flask.request.get_json(silent=True)
        try:
            kept = write_groups(book(reader), flask.request.args.get("graph", ""), told)
        except AttlasError as error:
            answer = flask.jsonify({"error": str(error)})
            answer.status_code = 400
            return answer
        return flask.jsonify({"groups": kept})
