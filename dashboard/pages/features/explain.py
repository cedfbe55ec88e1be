"""Explain: ask a language model on this machine what a feature is, as a job, and keep its label with the scores."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any

from dash import ALL, Dash, Input, Output, ctx, html, no_update

from attlas.analyses.explain import Asker, ExplainConfig, LocalExplainer, explain
from attlas.dashboard.autoencoders import autoencoder
from attlas.dashboard.components import button_link, card, empty, heading, job_panel, picker, short
from attlas.dashboard.jobs import Job
from attlas.dashboard.notes import book
from attlas.dashboard.page import Data, Page, Params, integer, link
from attlas.dashboard.pages.features.labels import TESTS, label_table, labels_of
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.models_catalog import catalog
from attlas.data.text import load_tokens
from attlas.errors import AttlasError

N_TOKENS, SEQ_LEN = 32_768, 256
SECONDS = 3600.0
USUAL = "smollm2-135m"
CONFIG = ExplainConfig()


def data(reader: WorkspaceReader, params: Params) -> Data:
    """The feature, who can be asked, what was answered; a job where one was begun."""
    run = reader.pick("features", params.get("run"), params.get("model"))
    feature = integer(params, "id")
    parents = () if run is None else run.parents
    sae = next((r.id for r in reader.runs("sae") if r.id in parents), None)
    found: Data = {"run": run.id if run else None, "feature": feature, "sae": sae, "live": False, "job": None}
    if feature is None:
        return found | _of_run(reader, params)
    if run is None or sae is None:
        return found
    names = explainers(reader)
    asked = params.get("explainer", "")
    who = asked if asked in names else USUAL if USUAL in names else next(iter(names), None)
    found |= {"model": run.model.name, "explainers": names, "explainer": who, "labels": labels_of(reader, sae, feature)}
    job = reader.jobs.look(_key(sae, feature, str(who)))
    if job is not None:
        found |= {"job": job.describe(), "live": job.poll()}
    return found


def _of_run(reader: WorkspaceReader, params: Params) -> Data:
    """Every label of a run: the one that the URL names, or the newest of the model."""
    told = reader.pick("explanations", params.get("run"), params.get("model"))
    if told is None:
        return {"explained": None}
    scores: dict[str, dict[str, Any]] = {}
    for row in reader.rows(told, "explanation_scores"):
        scores.setdefault(row["subject"], {})[row["test"]] = row
    rows = []
    for row in reader.rows(told, "explanations", ("layer", "head", "feature")):
        head = row["feature"] is None
        place = {"layer": row["layer"], "head": row["head"], "model": told.model.name}
        parent = next((r.id for r in reader.runs("features") if r.id in told.parents), None)
        href = link("/head", **place) if head else link("/feature", run=parent, id=row["feature"]) if parent else ""
        name = f"{row['layer']}.{row['head']}" if head else str(row["feature"])
        labelled = {"label": row["label"], "outcome": row["outcome"], "subject": row["subject"], "run": told.id}
        rows.append(labelled | {"name": name, "href": href, "scores": scores.get(row["subject"], {})})
    return {"explained": told.id, "model": told.model.name, "rows": rows, "summary": told.summary}


def explainers(reader: WorkspaceReader) -> list[str]:
    """Language models that can be loaded here."""
    images = {card.name for card in catalog() if card.family == "vit"}
    return [name for name in reader.jobs.names() if name not in images]


def _key(sae: str, feature: int, who: str) -> Hashable:
    return ("explain", sae, feature, who)


def begin(reader: WorkspaceReader, sae: str, feature: int, who: str) -> Job:
    """Ask about one feature; answers are kept in the workspace, so that work that was stopped goes on."""
    parent = reader.workspace.run(sae)
    told = reader.features_run(sae)

    def work(job: Job) -> str:
        model = reader.jobs.model(parent.model.name)
        explainer = LocalExplainer(reader.jobs.model(who))
        seq_len = model.cfg.sequence_length(SEQ_LEN)
        text = load_tokens("embedded:val", model.tokenizer, seq_len=seq_len, n_tokens=N_TOKENS)
        asker = Asker(explainer, reader.path)
        found = explain(model, autoencoder(reader, sae), text, [feature], asker, CONFIG, of=sae, track=job)
        parents = (sae, told.id) if told is not None else (sae,)
        return found.save(reader.workspace, model.ref, text.ref, parents=parents).id

    return reader.jobs.job(_key(sae, feature, who), f"what feature {feature} is, by {who}", work, SECONDS)


def view(data: Data, theme: Theme) -> Any:
    """Who is asked, the button, the job, the labels."""
    lead = "A language model names the feature from excerpts on which it fires; the name is then scored on others."
    if data["feature"] is None and data.get("explained"):
        return html.Div([heading("Explain", lead), _run_card(data)])
    if data["sae"] is None or data["feature"] is None:
        why = "Open a feature and press Explain. Many at once, or by an endpoint:"
        return html.Div(
            [heading("Explain", lead), empty("No feature is chosen", why, "attlas explain --explainer smollm2-135m")]
        )
    here = link("/feature", run=data["run"], id=data["feature"], model=data["model"])
    who = picker("explainer", "Explainer", [(n, n) for n in data["explainers"]], data["explainer"], USUAL)
    ask = html.Button(
        "Explain",
        id={"type": "explain", "sae": data["sae"], "feature": data["feature"], "who": data["explainer"]},
        className="button",
        disabled=bool(data["live"]),
    )
    half = CONFIG.n_test // 2
    note = (
        f"{CONFIG.n_shown} excerpts of {CONFIG.context} tokens are shown; detection and fuzzing are judged on {half} right and "
        f"{half} wrong ones that are not, with its label and with another feature's. Nothing leaves this machine."
    )
    small = "A small explainer names badly: look at the scores beside the control before you believe a name."
    parts = [
        heading(f"Explain feature {data['feature']}", lead, button_link("The feature", here)),
        card("Ask", job_panel(data["job"]), html.P(small, className="note"), note=note, controls=[who, ask]),
    ]
    if data["labels"]:
        told = "Balanced accuracy, 0.5 being chance, with its 95 % interval; then that with another feature's label."
        parts.append(card("Labels", label_table(data["labels"]), note=told))
    return html.Div([html.Div(part, className="columns one") if i else part for i, part in enumerate(parts)])


def _run_card(data: Data) -> Any:
    told = data["summary"]

    def mean(test: str) -> str:
        if told.get(test) is None:
            return f"{test}: none finished"
        low, high = told.get(f"{test}_low"), told.get(f"{test}_high")
        span = "" if low is None else f" [{short(low)}, {short(high)}]"
        control = told.get(f"{test}_control")
        return f"{test}: {short(told[test])}{span}" + (
            "" if control is None else f", {short(control)} with another’s label"
        )

    note = f"{told.get('n_explained')} labels by {told.get('explainer')}; means over them, 0.5 being chance: "
    return html.Div(
        card("Labels", label_table(data["rows"]), note=note + "; ".join(map(mean, TESTS)) + "."),
        className="columns one",
    )


def act_on_labels(app: Dash, reader: WorkspaceReader) -> None:
    """The button that asks, and the one that takes a label over into the note; both are POSTs of this site's own pages."""

    @app.callback(
        Output("acted", "data", allow_duplicate=True),
        Output("announce", "children", allow_duplicate=True),
        Input({"type": "explain", "sae": ALL, "feature": ALL, "who": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def ask(clicks: list[int | None]) -> tuple[Any, Any]:
        asked = ctx.triggered_id
        if not asked or not any(clicks):
            return no_update, no_update
        try:
            before = reader.jobs.look(_key(asked["sae"], asked["feature"], asked["who"]))
            if before is not None and before.finished:
                reader.jobs.forget(before.key)
            begin(reader, asked["sae"], asked["feature"], asked["who"])
        except AttlasError as error:
            return no_update, str(error)
        return time.time(), "asked"

    @app.callback(
        Output("acted", "data", allow_duplicate=True),
        Output("announce", "children", allow_duplicate=True),
        Input({"type": "take-label", "subject": ALL, "run": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def take(clicks: list[int | None]) -> tuple[Any, Any]:
        taken = ctx.triggered_id
        if not taken or not any(clicks):
            return no_update, no_update
        try:
            run = reader.workspace.run(taken["run"])
            rows = reader.rows(run, "explanations", subject=taken["subject"])
            label = next((row["label"] for row in rows if row["label"]), None)
            if label is None:
                return no_update, "this run has no such label"
            book(reader).write(taken["subject"], label=label, author="model")
        except AttlasError as error:
            return no_update, str(error)
        return time.time(), "label kept"


PAGE = Page("/explain", "Explain", data, view, nav=False)
