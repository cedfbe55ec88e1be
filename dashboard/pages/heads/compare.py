"""Two heads of a model side by side: what their attention is spent on, and every number of both."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from attlas.analyses.common.columns import Head
from attlas.dashboard.components import bars, card, table
from attlas.dashboard.page import Data, link, param_id
from attlas.dashboard.pages.heads.numbers import Heads
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.workspace import Run


def data(reader: WorkspaceReader, run: Run | None, heads: Heads, asked: list[Head]) -> Data | None:
    """The account of each of two heads by rule, and their numbers, with differences; None unless two are asked for."""
    pair = [head for head in asked if head in heads.rows][:2]
    if len(pair) < 2:
        return None
    one, other = (heads.rows[head] for head in pair)
    scores = [
        {"name": n.name, "score": n.title, "unit": n.unit, **_both(one.get(n.name), other.get(n.name))}
        for n in heads.numbers.values()
        if not n.name.startswith("share: ")
    ]
    accounts = [reader.rows(run, "head_account", layer=layer, head=head) for layer, head in pair]
    by_rule = {row["rule"]: row for row in accounts[1]}
    account = [
        {
            "rule": row["rule"],
            **_both(row["share"], by_rule[row["rule"]]["share"]),
            **{f"{end}_{at}": r[end] for at, r in (("one", row), ("other", by_rule[row["rule"]])) for end in _ENDS},
        }
        for row in accounts[0]
        if row["rule"] in by_rule
    ]
    return {"heads": [list(head) for head in pair], "account": account, "scores": scores}


_ENDS = ("low", "high")


def _both(one: float | None, other: float | None) -> Row:
    plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (one, other))
    return {
        "one": one,
        "other": other,
        "difference": one - other if plain and one is not None and other is not None else None,
    }


def view(data: Data, theme: Theme) -> Any:
    """The choice of two heads, and what they have."""
    places = [f"{row['layer']}.{row['head']}" for row in data["rows"]]
    found = data["compare"]
    chosen = (
        [f"{a}.{b}" for a, b in found["heads"]]
        if found
        else [p for p in data["compare_asked"].split(",") if p in places]
    )
    choose = dmc.MultiSelect(
        id=param_id("compare"),
        data=places,
        value=chosen,
        label="Two heads",
        maxValues=2,
        searchable=True,
        limit=60,
        clearable=True,
        size="xs",
        className="picker wide",
        placeholder="" if chosen else "3.0 and 2.0, say",
        comboboxProps={"withinPortal": True},
    )
    if not found:
        return card("Two heads beside each other", choose, span=2)
    links = [
        dcc.Link(name, href=link("/head", model=data["model"], layer=a, head=b))
        for name, (a, b) in zip(chosen, found["heads"], strict=True)
    ]
    return card(
        f"{chosen[0]} beside {chosen[1]}",
        html.P(["Open ", links[0], " or ", links[1], "."], className="note"),
        _account(found, chosen, theme),
        table(
            [{**row, "score": row["score"] + (f", {row['unit']}" if row["unit"] else "")} for row in found["scores"]],
            {"score": "number", "one": chosen[0], "other": chosen[1], "difference": "difference"},
            summary="Every number",
            open_=True,
        ),
        controls=choose,
        span=2,
    )


def _account(found: Data, names: list[str], theme: Theme) -> Any:
    rows = found["account"]
    if not rows:
        return html.P("No account of them: it comes with attlas heads.", className="note")
    drawn = [
        {
            "rule": row["rule"],
            "share": row[which],
            "head": name,
            "low": row[f"low_{which}"],
            "high": row[f"high_{which}"],
        }
        for which, name in zip(("one", "other"), names, strict=True)
        for row in rows
    ]
    columns = {"rule": "spent on", "one": names[0], "other": names[1], "difference": "difference"}
    return html.Div(
        [
            bars(drawn, "rule", "share", theme, group="head", x_title="spent on", y_title="share of attention"),
            table(rows, columns, summary="Shares", open_=True),
        ]
    )
