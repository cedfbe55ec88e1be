"""What the palette (Ctrl-K) finds: pages, models, heads, features, runs."""

from __future__ import annotations

import re
from typing import Any

from attlas.dashboard.feature_filter import FeatureFilter
from attlas.dashboard.notes import noted, words
from attlas.dashboard.page import Page, link
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.run_kinds import headline, kind_name, place_of
from attlas.data.workspace import Run

_HEAD = re.compile(r"l?(\d{1,3})\s*[.h]\s*h?(\d{1,3})", re.IGNORECASE)
_FEATURE = re.compile(r"#\s*(\d{1,9})")
MOST = 6  # of each sort


def find(
    reader: WorkspaceReader, pages: tuple[Page, ...], asked: str, model: str | None = None
) -> list[dict[str, Any]]:
    """Places that a few letters may mean, the surest first.

    Args:
        asked: part of a page's title, a model, a run's id or hook; a head as "3.0" or "L3H0"; a feature as "#746"; or
            words that a feature fires on or promotes.
        model: the chosen one; heads and features are then its.

    Returns:
        rows with sort ("head", "feature", "note", "page", "model", "run"), text, note and href.
    """
    asked = asked.strip()
    if not asked:
        return [_row("page", page.title, "", link(page.path, model=model)) for page in pages if page.nav]
    runs = reader.runs()
    found = _heads(asked, model, runs)
    by_number = _FEATURE.fullmatch(asked) is not None
    features = _features(reader, asked, model, by_number)
    low = asked.lower()
    found += features if by_number else []
    found += [
        _row("note", n["name"], f"{n['shown']} · {n['of']}", n["href"])
        for n in noted(reader, model)
        if n["href"] and low in words(n)
    ][:MOST]
    found += [_row("page", p.title, "", link(p.path, model=model)) for p in pages if p.nav and low in p.title.lower()]
    names = list(dict.fromkeys([*(run.model.name for run in runs), *reader.jobs.names()]))
    found += [_row("model", name, "choose it", link("/", model=name)) for name in names if low in name.lower()][:MOST]
    found += [] if by_number else features
    return found + [_run(run) for run in runs if low in f"{run.id} {run.kind} {headline(run)}".lower()][:MOST]


def _row(sort: str, text: str, note: str, href: str) -> dict[str, Any]:
    return {"sort": sort, "text": text, "note": note, "href": href}


def _run(run: Run) -> dict[str, Any]:
    where = place_of(run.kind, run.id, run.model.name) or link("/", run=run.id, model=run.model.name)
    return _row("run", f"{kind_name(run.kind)} {run.id}", headline(run), where)


def _heads(asked: str, model: str | None, runs: list[Run]) -> list[dict[str, Any]]:
    place = _HEAD.fullmatch(asked)
    if not place:
        return []
    names = [model] if model else list(dict.fromkeys(run.model.name for run in runs))
    layer, head = int(place[1]), int(place[2])
    return [
        _row("head", f"Head {layer}.{head}", name, link("/head", layer=layer, head=head, model=name))
        for name in names[:MOST]
    ]


def _features(reader: WorkspaceReader, asked: str, model: str | None, by_number: bool) -> list[dict[str, Any]]:
    """By number in every newest features run of a hook; by words in the newest of all."""
    newest: dict[str, tuple[Run, str]] = {}
    hooks = {run.id: str(run.summary.get("hook")) for run in reader.runs("sae")}
    for run in reader.runs("features", model):
        hook = next((hooks[id] for id in run.parents if id in hooks), run.id)
        newest.setdefault(f"{run.model.name} {hook}", (run, hook))
    if not by_number and len(asked) < 3:
        return []
    chosen = FeatureFilter(text=asked.replace(" ", "") if by_number else asked)
    rows = []
    for run, hook in list(newest.values())[: MOST if by_number else 1]:
        for row in reader.features_page(run, chosen, "max_act", True, 0, MOST)[0]:
            note = f"{hook} of {run.model.name} · {row.get('top_tokens') or ''}"
            href = link("/feature", run=run.id, id=row["feature"], model=run.model.name)
            rows.append(_row("feature", f"Feature {row['feature']}", note, href))
    return rows
