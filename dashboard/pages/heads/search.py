"""Search for words in the sequences that heads were kept with: where they stand, and which heads show these sequences."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.dashboard.components import attributes, card, short
from attlas.dashboard.components.job_panel import text_box
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.page import Data, link
from attlas.dashboard.reader import WorkspaceReader
from attlas.data.workspace import Run

MOST, HEADS, AROUND = 12, 12, 70  # sequences, heads of each, characters before and after
# Text of the tokens as it stands, and where the phrase begins in it; the heads that keep the sequence, strongest first.
_SQL = """
WITH texts AS (SELECT sequence, array_to_string(tokens, '') AS text FROM read_parquet(?)),
found AS (SELECT sequence, text, strpos(lower(text), ?) AS begins FROM texts WHERE contains(lower(text), ?))
SELECT sequence, any_value(text) AS text, any_value(begins) AS begins, count(*) AS n_heads,
    list({'layer': layer, 'head': head, 'strength': strength} ORDER BY strength DESC, layer, head) AS heads
FROM found JOIN (
    SELECT layer, head, sequence, max(strength) AS strength FROM read_parquet(?) WHERE "by" = ? GROUP BY 1, 2, 3
) USING (sequence) GROUP BY sequence ORDER BY max(strength) DESC, sequence
"""


def data(reader: WorkspaceReader, run: Run | None, words: str, by: str = "weight") -> Data | None:
    """Sequences that hold the words, case ignored, and their heads; None where nothing is asked or there are no texts."""
    files = [reader.table_file(run, name) for name in ("head_texts", "head_sequences")]
    asked = words.lower()
    if not asked.strip() or None in files or (run and run.summary.get("grid")):
        return None
    rows = reader.query(_SQL, [str(files[0]), asked, asked, str(files[1]), by])
    shown = []
    for row in rows[:MOST]:
        at = row["begins"] - 1
        start, end = max(0, at - AROUND), at + len(asked)
        around = [row["text"][start:at], row["text"][at:end], row["text"][end : end + AROUND]]
        shown.append({**row, "text": None, "around": around, "heads": row["heads"][:HEADS]})
    return {"words": words, "n_sequences": len(rows), "sequences": shown}


def view(data: Data) -> Any:
    """The box, and what was found."""
    if not data["run"] or data["vision"]:
        return None
    box = text_box("q", "Words in the sequences", data["q"], lines=1, hint="such as: the white whale")
    found = data["search"]
    if found is None:
        return card("Search", box, span=2)
    said = (
        f"{found['n_sequences']} of the kept sequences hold it" if found["n_sequences"] else "No kept sequence holds it"
    )
    return card(
        "Search",
        box,
        html.P(f"{said}. Beside each the heads that show it, the strongest first.", className="note"),
        *[_row(data, row) for row in found["sequences"]],
        span=2,
    )


def _row(data: Data, row: Data) -> Any:
    before, words, after = (visible(part) for part in row["around"])
    tags = [
        dcc.Link(
            [html.B(f"{h['layer']}.{h['head']}"), f" {short(h['strength'])}"],
            href=link("/head", model=data["model"], layer=h["layer"], head=h["head"], sequence=row["sequence"]),
            className="tag",
        )
        for h in row["heads"]
    ]
    more = row["n_heads"] - len(row["heads"])
    return html.Div(
        [
            html.P([f"…{before}", html.Mark(words), f"{after}…"], className="tokens"),
            html.Div([*tags, html.Span(f"and {more} more", className="note") if more else None], className="tags"),
        ],
        className="found",
        **attributes({"data-sequence": str(row["sequence"])}),
    )
