"""Labels that a language model gave a feature, with their scores, on the feature's page."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.dashboard.components import attributes, button_link, card, short
from attlas.dashboard.page import Data, link
from attlas.dashboard.reader import Row, WorkspaceReader

MOST_RUNS = 20  # of explanations, the newest, that are looked through
TESTS = ("detection", "fuzzing")


def labels_of(reader: WorkspaceReader, sae: str | None, feature: int) -> list[Row]:
    """One row a run that labelled the feature, the newest first: label, explainer, outcome and the scores of both tests."""
    if sae is None:
        return []
    found = []
    for run in [run for run in reader.runs("explanations") if sae in run.parents][:MOST_RUNS]:
        for row in reader.rows(run, "explanations", feature=feature):
            scores = {s["test"]: s for s in reader.rows(run, "explanation_scores", feature=feature)}
            told = {"run": run.id, "label": row["label"], "outcome": row["outcome"], "subject": row["subject"]}
            told |= {"explainer": run.config.get("explainer"), "scores": scores}
            found.append(told)
    return found


def labels_card(data: Data) -> Any:
    """What a model calls it, and how well that tells; a button to take a label over into the note."""
    rows, sae = data["labels"], data["sae"]
    if sae is None:
        return None
    ask = button_link("Explain", link("/explain", run=data["run"], id=data["feature"], model=data["model"]))
    if not rows:
        why = "A language model on this machine can name it from its examples, and the name is scored on others."
        return card("Labels by a model", html.P(why, className="note"), controls=ask)
    note = (
        "Balanced accuracy on excerpts the model was not shown, 0.5 being chance, with its 95 % interval; behind it the same "
        "with another feature's label."
    )
    return card("Labels by a model", label_table(rows), note=note, controls=ask)


def label_table(rows: list[Row]) -> Any:
    """A row a label, with its scores and the button."""
    of_many = any("name" in row for row in rows)  # of a run: each row another feature or head
    head = [html.Th(n, scope="col") for n in ("of" if of_many else "by", "label", *TESTS, "")]
    body = []
    for row in rows:
        place = dcc.Link(row["name"], href=row["href"]) if row.get("href") else row.get("name", row.get("explainer"))
        cells = [html.Td(place, className="wrap"), html.Td(row["label"] or row["outcome"], className="wrap")]
        cells += [html.Td(_score(row["scores"].get(test))) for test in TESTS]
        body.append(html.Tr([*cells, html.Td(_take(row) if row["label"] else None)]))
    return html.Div(html.Table([html.Thead(html.Tr(head)), html.Tbody(body)]), className="table scroll", tabIndex=0)


def _take(row: Row) -> Any:
    return html.Button(
        "Take as label",
        id={"type": "take-label", "subject": row["subject"], "run": row["run"]},
        className="button",
        **attributes({"aria-label": f"Take “{row['label']}” as label"}),
    )


def _score(row: Row | None) -> str:
    if row is None:
        return "—"
    span = "" if row["low"] is None else f" [{short(row['low'], 2)}, {short(row['high'], 2)}]"
    control = "" if row["control_accuracy"] is None else f", {short(row['control_accuracy'], 2)} with another’s"
    return f"{short(row['accuracy'], 2)}{span}{control}"
