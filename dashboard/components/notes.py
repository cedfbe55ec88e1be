"""A card to write about a feature or a head; what is typed is kept as soon as the box rests."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import html

from attlas.dashboard.components.basic import attributes, card


def note_id(subject: str, field: str) -> dict[str, str]:
    """Id of a control that writes a field of a note."""
    return {"type": "note", "subject": subject, "field": field}


def note_card(note: dict[str, Any]) -> Any:
    """Label, star, tags, comment of one subject (see `note_data`)."""
    subject = note["subject"]
    star = html.Button(
        "★" if note["star"] else "☆",
        id=note_id(subject, "star"),
        className="icon-button star" + (" on" if note["star"] else ""),
        title="Take the star away" if note["star"] else "Star: one to come back to",
        **attributes({"aria-pressed": str(note["star"]).lower(), "aria-label": "Star"}),
    )
    undo = html.Button(
        "Undo",
        id=note_id(subject, "undo"),
        className="button",
        disabled=not note["n_changes"],
        title="Take the last change back",
    )
    said = "Nothing written yet."
    if note["written"]:
        said = f"Written {note['written'][:16].replace('T', ' ')} UTC by {note['author']}."
    more = f" {note['n_changes']} changes are kept." if note["n_changes"] > 1 else ""

    def box(kind: Any, field: str, value: str, title: str, **more: Any) -> Any:
        size = {"debounce": 800, "size": "xs", "className": f"note-{field}"}
        return kind(id=note_id(subject, field), value=value, label=title, **size, **more)

    boxes = html.Div(
        [
            box(dmc.TextInput, "label", note["label"], "Label", placeholder="What it is, in a few words"),
            box(dmc.TextInput, "tags", ", ".join(note["tags"]), "Tags", placeholder="induction, to check"),
            box(dmc.Textarea, "comment", note["comment"], "Comment", autosize=True, minRows=1, maxRows=8),
        ],
        className="note-boxes",
    )
    return card("Note", boxes, html.P(said + more, className="note"), controls=[star, undo])
