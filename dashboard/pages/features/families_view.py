"""A feature's families on its page: scores beside their null, and the checks that a label needs."""

from __future__ import annotations

from typing import Any

from dash import html

from attlas.dashboard.components import card, short, table
from attlas.dashboard.reader import Row

FAMILIES = (
    ("induction", "induction", "on the token after an earlier copy of this one"),
    ("local", "local", "on the last 8 positions"),
    ("long_range", "long-range", "on positions 32 or more back"),
)
_NOTE = (
    "Share of its attribution, beside that of random directions that read the same heads as strongly and fire as often. "
    "q: Benjamini–Hochberg over features. A label needs q of 0.05 or less, and its check."
)


def families_card(row: Row) -> Any:
    """Scores, nulls and q of the three families, and what the checks found; nothing for runs without a null."""
    if row.get("induction_null") is None:
        return None
    rows = [
        {
            "family": title,
            "what": what,
            "score": row.get(name),
            "null": row.get(f"{name}_null"),
            "excess": row.get(f"{name}_excess"),
            "q": row.get(f"{name}_q"),
        }
        for name, title, what in FAMILIES
    ]
    names = {"family": "family", "what": "attribution", "score": "score", "null": "null", "excess": "excess", "q": "q"}
    lines = [html.P(line, className="note") for line in checks(row)]
    return card(
        f"Family: {row.get('family') or 'unassigned'}",
        table(rows, names, summary="Scores", open_=True),
        *lines,
        note=_NOTE,
    )


def checks(row: Row) -> list[str]:
    """A sentence on each check that was made."""
    lines = []
    if row.get("source_entropy") is not None:
        lines.append(
            f"Which token comes next: entropy {short(row['source_entropy'])} nats of the token at the source; "
            f"specific below {short(row.get('source_entropy_null'))}, the null's 5th percentile."
        )
    if row.get("fall") is not None:
        lines.append(
            f"Earlier copies replaced: its activation falls by {short(row['fall'])} more than with as many other tokens "
            f"replaced (95 % interval {short(row.get('fall_low'))} to {short(row.get('fall_high'))})."
        )
    for name, change in (("far", "all but the last 8 positions replaced"), ("near", "the 7 tokens before shuffled")):
        if row.get(f"kept_{name}") is not None:
            lines.append(
                f"With {change} it keeps {short(row[f'kept_{name}'])} of its activation; "
                f"random directions {short(row.get(f'kept_{name}_null'))} (median)."
            )
    return lines or ["No check was made: no family has the excess."]


def beside_null(row: Row, name: str, what: str) -> str | None:
    """A number beside its null's 95th percentile, in a sentence; None for runs that do not hold it."""
    score, null, q = (row.get(f"{name}{end}") for end in ("", "_null", "_q"))
    if score is None or null is None or q is None:
        return None
    verdict = "beyond that null" if q <= 0.05 else "no more than a random direction shows"
    return (
        f"{what}: {short(score)}. Of random directions with the same head norms 95 % have {short(null)} or less: "
        f"{verdict} (q {short(q)})."
    )
