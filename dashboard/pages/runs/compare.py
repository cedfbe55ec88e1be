"""Compare: runs of one kind, or features, side by side; what differs first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from attlas.dashboard.components import card, curve, empty, example, heading, picker, small_box, table
from attlas.dashboard.feature_filter import FeatureFilter
from attlas.dashboard.notes import labels, run_names
from attlas.dashboard.page import Data, Page, Params, link
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.run_kinds import kind_name
from attlas.dashboard.theme import Theme
from attlas.data.workspace import Run

MOST_RUNS = 12
MOST_FEATURES = 6
EXAMPLES = 4  # of each feature
CURVES = {
    "explained_variance": "explained variance",
    "loss": "loss",
    "l0": "L0, features a token",
    "dead_fraction": "dead features, fraction",
    "tokens_per_second": "tokens/s",
}
_FEATURE = re.compile(r"([\w.-]+):(\d{1,9})")
FACTS = {
    "label": "your label",
    "hook": "hook",
    "top_tokens": "fires on",
    "promoted": "promotes",
    "suppressed": "suppresses",
    "family": "family",
    "phrase": "phrase",
    "top_head": "top head",
    "top_head_share": "its share",
    "density": "density",
    "mean_act": "mean activation",
    "max_act": "largest activation",
    "induction_excess": "induction beyond its null",
    "local_excess": "local beyond its null",
    "long_range_excess": "long-range beyond its null",
}


def data(reader: WorkspaceReader, params: Params) -> Data:
    """The runs or features of the URL, their curves, settings and numbers."""
    asked = [id for id in params.get("runs", "").split(",") if id][:MOST_RUNS]
    features = _features(reader, params)
    every = reader.runs(model=params.get("model"))
    by_id = {run.id: run for run in reader.runs()}
    runs = [by_id[id] for id in dict.fromkeys(asked) if id in by_id]
    kind = runs[0].kind if runs else params.get("kind", "sae")
    metric = params.get("metric") if params.get("metric") in CURVES else "explained_variance"
    names = run_names(reader)
    return {
        "model": params.get("model"),
        "kind": kind,
        "kinds": sorted({run.kind for run in every}),
        "asked": [run.id for run in runs],
        "gone": [id for id in asked if id not in by_id],
        "other_kinds": [run.id for run in runs if run.kind != kind],
        "choices": [{"id": run.id, "text": _title(run, names)} for run in every if run.kind == kind],
        "runs": [_run(reader, run, names) for run in runs if run.kind == kind],
        "metric": metric,
        "features": features,
    }


def _title(run: Run, names: dict[str, str]) -> str:
    told = [names.get(run.id), run.summary.get("hook"), run.summary.get("arch"), run.model.name, run.created[:16]]
    return " · ".join(str(part) for part in told if part).replace("T", " ")


def _run(reader: WorkspaceReader, run: Run, names: dict[str, str]) -> Data:
    found: Data = {
        "id": run.id,
        "title": names.get(run.id) or run.id,
        "about": _title(run, {}),
        "config": {
            "model": run.model.name,
            "data": run.data.name if run.data else None,
            "seed": run.seed,
            **run.config,
        },
        "summary": run.summary,
        "curves": reader.curves(run, "training", "tokens", ("sae", "hook")) if "training" in run.tables else [],
    }
    if run.kind == "sae_eval":
        rows = reader.rows(run, "evaluation", subject="sae")
        found["intervals"] = {r["metric"]: {k: r[k] for k in ("value", "low", "high", "unit")} for r in rows}
    return found


def _features(reader: WorkspaceReader, params: Params) -> list[Data]:
    """Features named as RUN:12, comma-separated; `add` names one more of the first one's run."""
    named = _FEATURE.findall(params.get("features", ""))[:MOST_FEATURES]
    more = params.get("add", "").lstrip("#").strip()
    if named and more.isdigit() and len(more) < 10:
        named = [*named, (named[0][0], more)]
    runs = {run.id: run for run in reader.runs("features")}
    found = []
    for run_id, number in dict.fromkeys(named):
        run, feature = runs.get(run_id), int(number)
        rows = [] if run is None else reader.features_page(run, FeatureFilter(among=(feature,)))[0]
        note = labels(reader, run).get(feature) if rows else None
        row = rows[0] if rows else {}
        parent = reader.made_from(run, "sae") if run else None
        found.append(
            {
                "run": run_id,
                "feature": feature,
                "found": bool(rows),
                "model": run.model.name if run else None,
                "row": row
                | {"label": note["label"] if note else "", "hook": parent.summary.get("hook") if parent else None},
                "examples": reader.rows(run, "examples", ("rank",), feature=feature, stratum="top")[:EXAMPLES]
                if rows
                else [],
            }
        )
    return found


def view(data: Data, theme: Theme) -> Any:
    """What is compared, then differences, then what is the same."""
    if data["features"]:
        return _feature_view(data)
    lead = "Runs of one kind side by side: what differs first. Two features stand side by side from their own pages."
    head = heading("Compare", lead)
    if not data["choices"] and not data["runs"]:
        how = "attlas train --hooks blocks.3.attn.hook_z\nattlas train --hooks blocks.3.attn.hook_z --arch batchtopk"
        return html.Div([head, empty("Nothing to compare yet", "Make two runs of one kind:", how)])
    parts = [head, _choose(data)]
    if data["gone"]:
        parts.append(html.P(f"Not here any more: {', '.join(data['gone'])}.", className="note warning"))
    if data["other_kinds"]:
        parts.append(html.P(f"Of another kind, left out: {', '.join(data['other_kinds'])}.", className="note warning"))
    if len(data["runs"]) < 2:
        return html.Div([*parts, html.P("Add runs above; from two on they are compared.", className="note")])
    return html.Div([*parts, _curves(data, theme), _intervals(data), _tables(data)])


def _choose(data: Data) -> Any:
    asked = data["asked"]
    kinds = [(k, kind_name(k)) for k in data["kinds"]]
    controls = [] if asked else [picker("kind", "Kind", kinds, data["kind"], "sae")]
    rest = [c for c in data["choices"] if c["id"] not in asked]
    now = ",".join(asked)
    options = [(now, "—"), *[(",".join([*asked, c["id"]]), c["text"]) for c in rest]]
    chips = [
        html.Span(
            [
                dcc.Link(run["title"], href=link("/runs", run=run["id"])),
                html.Span(f" {run['about']} ", className="sub"),
                dcc.Link(
                    "×",
                    href=link("/compare", runs=",".join(id for id in asked if id != run["id"]), model=data["model"]),
                    title="Leave it out",
                ),
            ],
            className="tag",
        )
        for run in data["runs"]
    ]
    add = picker("runs", "Add a run", options, now, "", wide=True) if rest and len(asked) < MOST_RUNS else None
    return card("Runs", html.Div(chips, className="tags"), add, controls=controls)


def _curves(data: Data, theme: Theme) -> Any:
    series: dict[str, tuple[list[Any], list[Any]]] = {}
    for run in data["runs"]:
        for line in dict.fromkeys(str(r.get("sae") or r.get("hook")) for r in run["curves"]):
            rows = [r for r in run["curves"] if str(r.get("sae") or r.get("hook")) == line]
            name = (
                run["title"]
                if len({str(r.get("sae") or r.get("hook")) for r in run["curves"]}) == 1
                else f"{run['title']} {line}"
            )
            series[name] = ([r["tokens"] for r in rows], [r.get(data["metric"]) for r in rows])
    if not series:
        return None
    choose = picker("metric", "", list(CURVES.items()), data["metric"], "explained_variance")
    drawn = curve(series, theme, x_title="tokens", y_title=CURVES[data["metric"]], height=360)
    return card("Curves of training", drawn, controls=[choose])


def _intervals(data: Data) -> Any:
    """Metrics of evaluations with their intervals; whether two intervals lie apart."""
    if not all(run.get("intervals") for run in data["runs"]):
        return None
    first = data["runs"][0]["intervals"]
    rows = []
    for metric, told in first.items():
        found = [run["intervals"].get(metric) for run in data["runs"]]
        values = {run["id"]: _interval(one) for run, one in zip(data["runs"], found, strict=True)}
        rows.append({"metric": metric.replace("_", " "), **values, "apart": _apart(found), "unit": told["unit"]})
    rows.sort(key=lambda r: r["apart"] != "yes")
    names = {
        "metric": "metric",
        **{run["id"]: run["title"] for run in data["runs"]},
        "apart": "intervals apart",
        "unit": "unit",
    }
    note = "95 % intervals over sequences; those that lie apart come first. Overlapping ones do not show that two are equal."
    return card("Measured", table(rows, names, summary="Metrics", open_=True), note=note)


def _interval(one: dict[str, Any] | None) -> str:
    if one is None or one["value"] is None:
        return "—"
    if one["low"] is None or one["low"] == one["high"]:
        return f"{one['value']:.4g}"
    return f"{one['value']:.4g} ({one['low']:.4g} to {one['high']:.4g})"


def _apart(found: Sequence[dict[str, Any] | None]) -> str:
    known = [f for f in found if f and f["low"] is not None and f["low"] != f["high"]]
    if len(known) < 2:
        return ""
    return "yes" if max(f["low"] for f in known) > min(f["high"] for f in known) else "no"


def _tables(data: Data) -> Any:
    """Settings and numbers: differing ones open, equal ones folded."""
    parts = []
    for what, title in (("summary", "Numbers"), ("config", "Settings")):
        keys = dict.fromkeys(key for run in data["runs"] for key in run[what])
        rows = [
            {"name": key.replace("_", " "), **{run["id"]: _told(run[what].get(key)) for run in data["runs"]}}
            for key in keys
        ]
        names = {"name": "name", **{run["id"]: run["title"] for run in data["runs"]}}
        apart = [row for row in rows if len({row[run["id"]] for run in data["runs"]}) > 1]
        same = [row for row in rows if row not in apart]
        parts.append(
            card(
                title,
                table(apart, names, summary=f"{len(apart)} that differ", open_=True)
                or html.P("None differs.", className="note"),
                table(same, names, summary=f"{len(same)} that are the same"),
            )
        )
    return html.Div(parts)


def _told(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "—" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) < 120 else text[:117] + "…"


# -- features -------------------------------------------------------------------------------------------------------


def _feature_view(data: Data) -> Any:
    there = data["features"]
    gone = [f"{f['feature']} of {f['run']}" for f in there if not f["found"]]
    shown = [f for f in there if f["found"]]
    now = ",".join(f"{f['run']}:{f['feature']}" for f in shown)
    rows = []
    for key, title in FACTS.items():
        values: Row = {f"{f['run']}:{f['feature']}": f["row"].get(key) for f in shown}
        if any(value not in (None, "") for value in values.values()):
            rows.append({"fact": title, **values})
    names = {"fact": "", **{f"{f['run']}:{f['feature']}": f"feature {f['feature']}" for f in shown}}
    scale = max((r["activation"] or 0.0 for f in shown for r in f["examples"]), default=0.0)
    columns = [_feature_card(f, scale) for f in shown]
    return html.Div(
        [
            heading("Compare features", "Side by side: what they fire on, promote and come from."),
            html.P(f"Not here: {', '.join(gone)}.", className="note warning") if gone else None,
            card(
                "Facts",
                html.Div(
                    [
                        small_box("add", "One more, by id", "") if shown else None,
                        dcc.Link("Keep these", href=link("/compare", features=now), className="button"),
                    ],
                    className="controls",
                ),
                table(rows, names, summary="Facts", open_=True),
            ),
            html.Div(columns, className="columns"),
        ]
    )


def _feature_card(feature: Data, scale: float) -> Any:
    href = link("/feature", run=feature["run"], id=feature["feature"], model=feature["model"])
    texts = [row for row in feature["examples"] if row.get("tokens")]
    note = (
        f"Its {len(texts)} strongest examples; one scale of tint for all features here."
        if texts
        else "No text examples."
    )
    title = feature["row"]["label"] or f"Feature {feature['feature']}"
    return card(
        title,
        html.Ul([example(row, scale) for row in texts], className="examples"),
        note=note,
        controls=[dcc.Link("Its page", href=href, className="button")],
    )


PAGE = Page("/compare", "Compare", data, view, nav=False)
