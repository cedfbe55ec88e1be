"""Steer: what the model writes while a feature or a head is raised, set or taken out, beside its own text and a control."""

from __future__ import annotations

import time
from typing import Any

from dash import ALL, Dash, Input, Output, ctx, html, no_update

from attlas.analyses.steering import SteerConfig, SteeringResult, steer
from attlas.dashboard.autoencoders import autoencoder
from attlas.dashboard.components import (
    attributes,
    button_link,
    card,
    empty,
    heading,
    job_panel,
    picker,
    short,
    slider,
    small_box,
    table,
    text_box,
)
from attlas.dashboard.components.tokens import lit, visible
from attlas.dashboard.jobs import Job
from attlas.dashboard.page import Data, Page, Params, integer, link, number
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.text import load_tokens
from attlas.data.workspace import Ref, Run
from attlas.errors import ConfigError

PROMPT = "Once upon a time"
MODES = (("add", "add"), ("clamp", "clamp"), ("ablate", "ablate"))
POSITIONS = (("all", "every position"), ("generated", "generated ones"))
SAMPLING = (("0", "likeliest token"), ("0.7", "sampled, 0.7"), ("1", "sampled, 1.0"))
SECONDS = 300.0
N_NEW = 40
N_TOKENS, SEQ_LEN = 1_024, 128  # of the corpus that KL and loss are measured on
UNKNOWN_MAX = 10.0  # of the slider, where the feature's largest activation is not known


def data(reader: WorkspaceReader, params: Params) -> Data:
    """The change that the URL says, and the three texts when the job is done."""
    saved = next((run for run in reader.runs("steering") if run.id == params.get("run")), None)
    if saved is not None:
        return _saved(reader, saved)
    heads = tuple(h for h in params.get("heads", "").replace(" ", "").split(",") if h)
    features = tuple(int(f) for f in params.get("feature", "").replace(" ", "").split(",") if f.isdecimal())
    sae = reader.pick("sae", params.get("sae"), params.get("model")) if features else None
    model = sae.model.name if sae is not None else params.get("model") or next(iter(reader.jobs.names()), "")
    most = _largest(reader, sae.id, features[0]) if sae is not None else 1.0
    usual = round(most, 1) if features else 1.0
    strength = number(params, "strength")
    found: Data = {
        "model": model,
        "sae": sae.id if sae else None,
        "feature": ",".join(map(str, features)),
        "heads": ",".join(heads),
        "prompt": params.get("prompt") or PROMPT,
        "mode": params.get("mode", "add"),
        "strength": usual if strength is None else strength,
        "usual": usual,
        "top": max(1.0, round(4 * most, 1)) if features else 4.0,
        "positions": params.get("positions", "all"),
        "temperature": params.get("temperature", "0"),
        "seed": integer(params, "seed") or 0,
        "live": False,
        "job": None,
        "texts": None,
    }
    told = reader.features_run(found["sae"])
    found["features_run"] = told.id if told else None
    if not (heads or (features and sae)):
        return found
    try:
        config = SteerConfig(
            features=features,
            heads=heads,
            mode=found["mode"],
            strength=found["strength"],
            positions=found["positions"],
            n_new=N_NEW,
            temperature=number(params, "temperature") or 0.0,
            seed=found["seed"],
        )
    except ConfigError as error:
        return found | {"error": str(error)}
    job = _job(reader, model, found["sae"], found["prompt"], config)
    found |= {"job": job.describe(), "live": job.poll()}
    if job.result is None:
        return found
    result: SteeringResult = job.result[0]
    kept = next((r.id for r in reader.runs("steering", model) if r.summary == _plain(result.summary())), None)
    texts = []
    for t in result.texts:
        row = {"variant": t.variant, "tokens": list(t.tokens), "probabilities": list(t.probabilities)}
        texts.append(row | {"prompt": list(t.prompt), "corpus": [list(part) for part in t.corpus or ()]})
    return found | {"texts": texts, "kept": kept}


def _saved(reader: WorkspaceReader, run: Run) -> Data:
    """What a run holds, in the form of a job's result."""
    config, texts = run.config, []
    for row in reader.rows(run, "steering"):
        tokens = reader.rows(run, "steering_tokens", ("place",), variant=row["variant"])
        corpus = [
            [row[f"corpus_{name}"], row[f"corpus_{name}_low"], row[f"corpus_{name}_high"]]
            for name in ("kl", "delta_ce")
        ]
        told = {"variant": row["variant"], "tokens": [t["generated_token"] for t in tokens]}
        told |= {
            "probabilities": [t["probability"] for t in tokens],
            "prompt": [row["prompt_kl"], row["prompt_delta_ce"]],
        }
        texts.append(told | {"corpus": corpus if row["corpus_kl"] is not None else []})
    parent = reader.made_from(run, "sae")
    sae = parent.id if parent else None
    told_of = reader.features_run(sae)
    return {
        **{name: config[name] for name in ("mode", "strength", "positions", "seed")},
        "model": run.model.name,
        "sae": sae,
        "feature": ",".join(map(str, config["features"])),
        "heads": ",".join(config["heads"]),
        "prompt": run.summary["prompt"],
        "temperature": f"{config['temperature']:g}",
        "features_run": told_of.id if told_of else None,
        "live": False,
        "job": None,
        "texts": texts,
        "kept": run.id,
    }


def _plain(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in summary.items()}


def _largest(reader: WorkspaceReader, sae: str, feature: int) -> float:
    """The feature's largest activation on the corpus of its features run."""
    rows = reader.rows(reader.features_run(sae), "features", feature=feature) if reader.features_run(sae) else []
    return float(rows[0].get("max_act") or UNKNOWN_MAX) if rows else UNKNOWN_MAX


def _job(reader: WorkspaceReader, model: str, sae: str | None, prompt: str, config: SteerConfig) -> Job:
    def work(job: Job) -> tuple[SteeringResult, Ref, Ref, str | None]:
        hooked = reader.jobs.model(model)
        seq_len = hooked.cfg.sequence_length(SEQ_LEN)
        text = reader.jobs.kept(
            ("steering text", model),
            lambda: load_tokens("embedded:val", hooked.tokenizer, seq_len=seq_len, n_tokens=N_TOKENS),
        )
        found = steer(hooked, prompt, config, autoencoder(reader, sae) if sae else None, text, track=job)
        return found, hooked.ref, text.ref, sae

    what = ", ".join([*(f"#{f}" for f in config.features), *config.heads])
    return reader.jobs.job(("steer", model, sae, prompt, config), f"steering {model} by {what}", work, SECONDS)


def view(data: Data, theme: Theme) -> Any:
    """The change, the texts side by side, how far they move the model."""
    lead = (
        "What the model writes while a feature or a head is changed, beside its own text and a random change as long."
    )
    parts: list[Any] = [
        heading("Steer", lead, *_back(data)),
        _saved_change(data) if "usual" not in data else _change(data),
    ]
    if data.get("error"):
        parts.append(empty("This cannot be steered", data["error"]))
    elif data["texts"]:
        parts += [_texts(data), _moved(data)]
    elif not data["job"]:
        parts.append(
            empty(
                "Nothing is changed yet",
                "Name a feature or a head above, or in a terminal:",
                "attlas steer --feature 0",
            )
        )
    return html.Div(parts)


def _back(data: Data) -> list[Any]:
    first = data["feature"].split(",")[0]
    if not (data["features_run"] and first):
        return []
    return [button_link("The feature", link("/feature", run=data["features_run"], id=first, model=data["model"]))]


def _saved_change(data: Data) -> Any:
    what = " and ".join(part for part in (f"features {data['feature']}" * bool(data["feature"]), data["heads"]) if part)
    again = {
        name: data[name] for name in ("sae", "feature", "heads", "mode", "strength", "positions", "seed", "prompt")
    }
    again |= {"temperature": data["temperature"], "model": data["model"]}
    said = f"{data['mode']} {short(float(data['strength']))}, {what}, at {dict(POSITIONS)[data['positions']]}."
    return card("A run", html.P(said), controls=button_link("Change it", link("/steer", **again)))


def _change(data: Data) -> Any:
    controls = [
        small_box("feature", "Features", data["feature"]),
        small_box("heads", "Heads", data["heads"]),
        picker("mode", "Change", MODES, data["mode"], "add"),
        picker("positions", "Where", POSITIONS, data["positions"], "all"),
        picker("temperature", "Tokens", SAMPLING, data["temperature"], "0"),
        small_box("seed", "Seed", str(data["seed"] or "")),
    ]
    of = f" of {data['sae']}" if data["sae"] else ""
    note = (
        f"Model {data['model']}; features{of}. Add raises the activation by the strength, clamp sets it, ablate takes it "
        "out; what the autoencoder misses stays. A head's z is scaled by 1 + strength. The slider begins at the feature's "
        "largest activation on the corpus."
    )
    label = f"Strength {short(float(data['strength']))}"
    bar = slider("strength", label, data["strength"], 0.0, data["top"], data["usual"], step=round(data["top"] / 40, 3))
    box = text_box("prompt", "Prompt", data["prompt"], PROMPT)
    return card("Change", html.Div(controls, className="controls"), bar, box, job_panel(data["job"]), note=note)


def _texts(data: Data) -> Any:
    names = {"unsteered": "The model's own", "steered": "Steered", "random direction": "Random direction, as long"}
    shown = [
        card(
            names[t["variant"]],
            html.P(
                [
                    html.Span(visible(data["prompt"]), className="token"),
                    *[_token(token, p) for token, p in zip(t["tokens"], t["probabilities"], strict=True)],
                ],
                className="tokens",
            ),
        )
        for t in data["texts"]
    ]
    return html.Div(shown, className="columns three")


def _token(token: str, probability: float) -> Any:
    return lit(token, probability, **attributes({"data-tip": f"taken with probability {short(probability)}"}))


def _moved(data: Data) -> Any:
    def cell(part: list[float]) -> str:
        return f"{short(part[0])} [{short(part[1])}, {short(part[2])}]"

    rows = []
    for t in data["texts"][1:]:
        row = {"text": t["variant"], "prompt_kl": t["prompt"][0], "prompt_ce": t["prompt"][1]}
        rows.append(row | dict(zip(("kl", "ce"), map(cell, t["corpus"]), strict=False)))
    names = {
        "text": "change",
        "prompt_kl": "KL, prompt",
        "prompt_ce": "ΔCE, prompt",
        "kl": "KL, corpus",
        "ce": "ΔCE, corpus",
    }
    keep = html.Button(
        "Kept as a run" if data["kept"] else "Keep as a run",
        id={"type": "keep-steering", "key": data["job"]["key"] if data["job"] else ""},
        className="button",
        disabled=bool(data["kept"]),
    )
    note = (
        "Nats a token: KL of the next token from the unsteered model, and what the change adds to the loss; on the prompt, and "
        f"on {N_TOKENS:,} tokens of embedded:val with 95 % intervals over sequences. Tint above: how likely each token was."
    )
    return card(
        "How far it moves the model", table(rows, names, summary="Numbers", open_=True), note=note, controls=keep
    )


def keep_steering(app: Dash, reader: WorkspaceReader) -> None:
    """The button that saves what the page shows as a run."""

    @app.callback(
        Output("acted", "data", allow_duplicate=True),
        Output("announce", "children", allow_duplicate=True),
        Input({"type": "keep-steering", "key": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def keep(clicks: list[int | None]) -> tuple[Any, Any]:
        asked = ctx.triggered_id
        job = reader.jobs.by_name(asked["key"]) if asked and any(clicks) else None
        if job is None or job.result is None:
            return no_update, no_update
        result, model, text, sae = job.result
        saved = result.save(reader.workspace, model, text, parents=(sae,) if sae else ())
        return time.time(), f"kept as {saved.id}"


PAGE = Page("/steer", "Steer", data, view, nav=False)
