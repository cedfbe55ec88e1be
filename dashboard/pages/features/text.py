"""Your text: which features of all a model's autoencoders fire on it, token by token, and what made one of them fire."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.analyses.features.on_text import Firing, firing, sources
from attlas.dashboard.autoencoders import autoencoder
from attlas.dashboard.components import (
    attributes,
    card,
    empty,
    heading,
    job_panel,
    picker,
    short,
    small_box,
    table,
    text_box,
)
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.jobs import Job
from attlas.dashboard.notes import labels, shown
from attlas.dashboard.page import Data, Page, Params, integer, link, number
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little."
MOST_ROWS = 60
SECONDS = 120.0


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Tokens of the text with the strongest feature at each; the features that fire, ranked; one of them along the text."""
    runs = _newest(reader, params.get("model"))
    model = str(next(iter(runs.values())).model.name if runs else params.get("model") or "")
    text = params.get("text") or TEXT
    found: Data = {"model": model, "text": text, "saes": {hook: run.id for hook, run in runs.items()}, "live": False}
    if not runs:
        return found
    job = _job(reader, model, text, found["saes"])
    found |= {"job": job.describe(), "live": job.poll(), "tokens": None}
    if job.result is None:
        return found
    fired: Firing = job.result
    hook = params.get("hook") if params.get("hook") in fired.hooks else None
    at = integer(params, "at")
    at = at if at is not None and 0 <= at < len(fired.tokens) else None
    skip = 0 if params.get("first") == "1" else 1
    known = _known(reader, found["saes"], fired)
    low, high = number(params, "min"), number(params, "max")
    rows = []
    notes = {h: labels(reader, reader.features_run(id)) for h, id in found["saes"].items()}
    largest = {place: row["max_act"] for place, row in known.items() if row["max_act"]}
    for row in fired.ranked(largest, at=at, skip=skip):
        told = known.get((row["hook"], row["feature"]), {})
        density = told.get("density")
        out = density is not None and (
            (low is not None and 100 * density < low) or (high is not None and 100 * density > high)
        )
        if not out and hook in (None, row["hook"]):
            note = shown(notes[row["hook"]].get(row["feature"]))
            rows.append(
                row | {"note": note} | {k: told.get(k) for k in ("density", "top_tokens", "promoted", "family", "run")}
            )
    found |= {
        "tokens": list(fired.tokens),
        "strengths": _strengths(fired, largest, skip),
        "hooks": list(fired.hooks),
        "hook": hook,
        "at": at,
        "skip": skip,
        "min": params.get("min", ""),
        "max": params.get("max", ""),
        "total": len(rows),
        "rows": rows[:MOST_ROWS],
    }
    return found | _one(reader, found, fired, params.get("feature", ""))


def _newest(reader: WorkspaceReader, model: str | None) -> dict[str, Any]:
    """hook → the newest run of an autoencoder on it, of the chosen (or the newest trained) text model."""
    found: dict[str, Any] = {}
    for run in reader.runs("sae", model):
        if not found or run.model.name == next(iter(found.values())).model.name:
            found.setdefault(str(run.summary.get("hook")), run)
    return dict(sorted(found.items()))


def _job(reader: WorkspaceReader, model: str, text: str, saes: dict[str, str]) -> Job:
    def work(job: Job) -> Firing:
        hooked = reader.jobs.model(model)
        job.note = f"{len(saes)} autoencoders"
        return firing(hooked, {hook: autoencoder(reader, id) for hook, id in saes.items()}, text)

    return reader.jobs.job(("firing", model, text, tuple(saes.items())), f"features on a text, {model}", work, SECONDS)


def _known(reader: WorkspaceReader, saes: dict[str, str], fired: Firing) -> dict[tuple[str, int], Row]:
    """What the newest features run of each autoencoder says of the features that fire."""
    found: dict[tuple[str, int], Row] = {}
    for i, hook in enumerate(fired.hooks):
        run = reader.features_run(saes[hook])
        path = reader.table_file(run, "features")
        if run is None or path is None:
            continue
        there = reader.columns(run, "features")
        wanted = ", ".join(
            c for c in ("feature", "density", "max_act", "top_tokens", "promoted", "family") if c in there
        )
        ids = sorted({int(f) for f in fired.feature[fired.hook == i]})
        sql = f"SELECT {wanted} FROM read_parquet(?) WHERE feature IN (SELECT unnest(?::INTEGER[]))"
        for row in reader.query(sql, [str(path), ids]):
            found[(hook, row["feature"])] = row | {"run": run.id}
    return found


def _strengths(fired: Firing, largest: dict[tuple[str, int], float], skip: int) -> list[float]:
    """The strongest feature at each token, as a share of its largest activation on the corpus (of the text without one)."""
    top = float(fired.activation.max()) if len(fired.activation) else 1.0
    found = [0.0] * len(fired.tokens)
    for i, position, feature, value in zip(fired.hook, fired.position, fired.feature, fired.activation, strict=True):
        most = largest.get((fired.hooks[i], int(feature)), top)
        if position >= skip:
            found[position] = max(found[position], float(value) / most)
    return found


def _one(reader: WorkspaceReader, data: Data, fired: Firing, asked: str) -> Data:
    """One feature along the text: its activations, and the source tokens of its peak where the hook has heads."""
    hook, _, feature = asked.rpartition("/")
    if hook not in fired.hooks or not feature.isdecimal():
        return {"one": None}
    along = fired.along(hook, int(feature))
    counted = range(min(data["skip"], len(along) - 1), len(along))
    peak = max(counted, key=along.__getitem__)
    one: Data = {"hook": hook, "feature": int(feature), "along": along, "peak": peak if along[peak] > 0 else None}
    if one["peak"] is None or not hook.endswith("hook_z"):
        return {"one": one | {"sources": None}}

    def work(job: Job) -> list[float]:
        model = reader.jobs.model(data["model"])
        return sources(model, autoencoder(reader, data["saes"][hook]), hook, data["text"], int(feature), [peak])[0]

    key = ("firing-sources", data["model"], data["text"], data["saes"][hook], int(feature), peak)
    job = reader.jobs.job(key, f"sources of feature {feature}", work, SECONDS)
    more: Data = {"one": one | {"sources": job.result}}
    return more if job.finished and job.state == "done" else more | {"job": job.describe(), "live": job.poll()}


def _here(data: Data, **changes: Any) -> str:
    kept = {"model": data["model"], "text": None if data["text"] == TEXT else data["text"], "hook": data.get("hook")}
    kept |= {
        "at": data.get("at"),
        "first": "1" if data.get("skip") == 0 else None,
        "min": data.get("min"),
        "max": data.get("max"),
    }
    one = data.get("one")
    kept["feature"] = f"{one['hook']}/{one['feature']}" if one else None
    return link("/text", **(kept | changes))


def view(data: Data, theme: Theme) -> Any:
    """The text box, the tokens, the features."""
    lead = "Type a text: which features fire on it, at which token, and which earlier token made one fire."
    if not data["saes"]:
        where = f" of {data['model']}" if data["model"] else ""
        return html.Div([heading("Your text", lead), empty(f"No autoencoder{where} yet", "Train one:", "attlas train")])
    box = text_box("text", f"Text for {data['model']}, at most 512 tokens", data["text"], TEXT)
    parts: list[Any] = [heading("Your text", lead), card("Text", box, job_panel(data["job"]))]
    if data["tokens"]:
        parts += [_strip(data), _along(data), _table(data)]
    return html.Div(parts)


def _token(data: Data, i: int, strength: float, said: str, mark: str = "", **changes: Any) -> Any:
    chosen = " peak" if mark == "peak" else ""
    boxed = " source" if mark == "source" else ""
    strong = " strong" if strength > 0.55 else ""
    lit = f" lit{strong}" if strength > 0 else ""
    text = visible(data["tokens"][i])
    inner = html.Span(
        text,
        className=f"token{lit}{chosen}{boxed}",
        style={"--heat": f"{100 * max(0.0, min(1.0, strength)):.0f}%"},
        **attributes({"data-tip": said} if lit or boxed else {}),
    )
    return (
        dcc.Link(inner, href=_here(data, **changes), className="token-link", title=f"token {i}") if changes else inner
    )


def _strip(data: Data) -> Any:
    spans = [
        _token(
            data,
            i,
            value,
            f"strongest: {value:.0%}",
            "peak" if i == data["at"] else "",
            at=None if i == data["at"] else i,
        )
        for i, value in enumerate(data["strengths"])
    ]
    note = (
        "Tint: the strongest feature at a token, as a share of its largest activation on the corpus. Click a token for its "
        "features."
    )
    return card("Tokens", html.P(spans, className="tokens"), note=note)


def _along(data: Data) -> Any:
    one = data["one"]
    if one is None:
        return html.Div(className="job-place")
    top = max(one["along"]) or 1.0
    best = None
    if one["sources"]:
        best = max(range(len(one["sources"])), key=one["sources"].__getitem__)
    spans = [
        _token(data, i, v / top, short(v), "peak" if i == one["peak"] else "source" if i == best else "")
        for i, v in enumerate(one["along"])
    ]
    said = "It does not fire on this text."
    if one["peak"] is not None:
        said = f"Strongest at token {one['peak']}: {short(one['along'][one['peak']])}."
        if best is not None:
            token = visible(data["tokens"][best])
            said += (
                f" Boxed: “{token}”, which adds most to it there ({short(one['sources'][best])} of its pre-activation)."
            )
    run = next((r["run"] for r in data["rows"] if (r["hook"], r["feature"]) == (one["hook"], one["feature"])), None)
    more = dcc.Link("Open the feature", href=link("/feature", run=run, id=one["feature"])) if run else None
    return card(
        f"Feature {one['feature']} of {one['hook']}",
        html.P(spans, className="tokens"),
        html.P([said, " ", more], className="note"),
        controls=dcc.Link("Close", href=_here(data, feature=None), className="button"),
    )


def _table(data: Data) -> Any:
    rows = [
        {
            "feature": dcc.Link(str(r["feature"]), href=_here(data, feature=f"{r['hook']}/{r['feature']}")),
            "note": r["note"],
            "hook": r["hook"],
            "share": None if r["share"] is None else f"{r['share']:.0%}",
            "activation": r["activation"],
            "token": f"{r['position']} “{visible(data['tokens'][r['position']])}”",
            "n": r["n"],
            "density": r["density"],
            "top_tokens": r["top_tokens"],
            "promoted": r["promoted"],
        }
        for r in data["rows"]
    ]
    names = {
        "feature": "feature",
        "hook": "hook",
        "share": "of its largest",
        "activation": "activation",
        "token": "at token",
    }
    names |= {"n": "tokens", "density": "density", "top_tokens": "fires on", "promoted": "promotes"}
    if len(data["hooks"]) == 1:
        del names["hook"]
    if any(r["note"] for r in rows):
        names = {"feature": "feature", "note": "note"} | names
    hooks = [("", "All hooks"), *[(h, h) for h in data["hooks"]]]
    controls = [
        picker("hook", "Hook", hooks, data["hook"] or "", "", wide=True) if len(hooks) > 2 else None,
        picker("first", "First token", [("", "left out"), ("1", "counted")], "" if data["skip"] else "1", ""),
        small_box("min", "Min density, %", data["min"]),
        small_box("max", "Max density, %", data["max"]),
    ]
    where = f"at token {data['at']}" if data["at"] is not None else "on the text"
    of = f"{len(rows)} of " if data["total"] > len(rows) else ""
    shown = f"{of}{data['total']} features that fire {where}, "
    return card(
        "Features",
        table(rows, names, summary="Features", open_=True),
        note=f"{shown}ranked by the share of their largest activation on the corpus (those without a features run last). "
        "Click one to see it along the text.",
        controls=controls,
    )


PAGE = Page("/text", "Your text", data, view)
