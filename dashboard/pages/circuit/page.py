"""Circuit explorer: type a prompt, follow its features upstream, see why heads attend where they do, take parts out.

Four views of one prompt (features, attention, graph, and saved runs), all of them in the URL; what a model must be run
for is done by `jobs`, through the queue.
"""

from __future__ import annotations

from typing import Any

from dash import html

from attlas.dashboard.components import empty, heading, job_panel
from attlas.dashboard.jobs import Job
from attlas.dashboard.page import Data, Page, Params, integer
from attlas.dashboard.pages.circuit.attention import ablation_view, attention_view
from attlas.dashboard.pages.circuit.graph import graph_data, graph_view
from attlas.dashboard.pages.circuit.names import feature_names, told_by_layer
from attlas.dashboard.pages.circuit.saved import saved_data, saved_view
from attlas.dashboard.pages.circuit.setup import Setup
from attlas.dashboard.pages.circuit.view import feature_view, prompt_view, step, tabs
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.models_catalog import catalog

DEFAULT = " the captain saw the white whale, and the captain saw the white"
VIEWS = {"features": "Features", "attention": "Attention", "graph": "Graph", "saved": "Saved runs"}
SECONDS = 90.0
# Everything of the URL that a link on this page keeps.
KEPT = "model lm text right wrong view trail at layer head dest src of threshold keys node pins ablate run".split()  # noqa: SIM905


def data(reader: WorkspaceReader, params: Params) -> Data:
    """The prompt, one view of it, and what is taken out; each a job of the server."""
    names = _models(reader)
    name = params["lm"] if params.get("lm") in names else _default(params, names)
    text = params.get("text", DEFAULT)
    choices = _autoencoders(reader, name)
    chosen = {layer: _chosen(params, layer, runs) for layer, runs in choices.items()}
    runs = tuple(run for run in chosen.values() if run)
    right, wrong = integer(params, "right"), integer(params, "wrong")
    setup = Setup(name, text, runs, right if right is not None and right >= 0 else None, wrong)
    view = params.get("view") if params.get("view") in VIEWS else "features"
    found: Data = {
        "params": {k: v for k, v in params.items() if k in KEPT or k.removeprefix("sae").isdigit()},
        "view": view,
        "lm": name,
        "default_lm": _default(params, names),
        "lms": names,
        "asked_for": params.get("model"),
        "text": text,
        "default_text": DEFAULT,
        "autoencoders": {str(layer): list(runs) for layer, runs in choices.items()},
        "saes": {str(layer): run for layer, run in chosen.items()},
        "trail": [id for id in params.get("trail", "").split(">") if step(id)],
        "ablated": list(dict.fromkeys(id for id in params.get("ablate", "").split(",") if id)),
        "told": _told(reader),
        "jobs": {},
    }
    if view == "saved":  # its runs have prompts of their own
        return found | {"prompt": None, "saved": saved_data(reader, params), "job": None, "live": False}
    _ask(reader, found, "prompt", setup, (right, wrong), f"{name} reads the prompt", job=True)
    found["names"] = _names(reader, found)
    if view == "features" and found["trail"]:
        focus = step(found["trail"][-1])
        _ask(reader, found, "feature", setup, focus, f"attribution of feature {found['trail'][-1]}")
    elif view == "attention":
        place = tuple(_whole(params, k) for k in ("layer", "head", "dest", "src"))
        _ask(reader, found, "score", setup, place, "an attention score in pairs of terms")
    elif view == "graph":
        graph_data(reader, found, setup, params, _ask)
    if found["ablated"]:
        ids = tuple(found["ablated"])
        _ask(reader, found, "ablation", setup, (ids,), f"{name} without {', '.join(ids)}")
    waiting = [job for job in found["jobs"].values() if job["state"] in ("queued", "running")]
    found["job"] = waiting[0] if waiting else None
    found["live"] = min(found.pop("polls"), default=False) if waiting else False
    return found


def _ask(
    reader: WorkspaceReader, found: Data, name: str, setup: Setup, more: Any, title: str, job: bool = False
) -> Any:
    """Queue the function `name` of `jobs` with (reader, setup, *more); its result and state go into the data."""
    given = () if name == "prompt" else tuple(more or ())

    def work(running: Job) -> Any:
        from attlas.dashboard.pages.circuit import jobs

        return getattr(jobs, name)(reader, setup, *given, **({"job": running} if job else {}))

    piece = reader.jobs.job(
        ("circuit", name, setup, more, str(reader.path)),
        title,
        work,
        seconds=SECONDS,
    )
    found["jobs"][name] = piece.describe()
    found.setdefault("polls", []).append(piece.poll())
    if found["polls"][-1] is False:
        found["polls"].pop()
    found[name] = piece.result
    return piece.result


def _names(reader: WorkspaceReader, found: Data) -> dict[str, str]:
    """ "layer/feature" → its name, of the features shown at the prompt's tokens."""
    layers = (found["prompt"] or {"layers": []})["layers"]
    wanted = {(layer["layer"], row["feature"]) for layer in layers for row in layer["features"]}
    return feature_names(reader, told_by_layer(found), wanted)


def _models(reader: WorkspaceReader) -> list[str]:
    """Language models at hand: embedded, fetched, and named to the server."""
    cards = catalog()
    return [*(c.name for c in cards if c.present and c.family != "vit"), *reader.jobs.folders]


def _default(params: Params, names: list[str]) -> str:
    return params["model"] if params.get("model") in names else names[0]


def _autoencoders(reader: WorkspaceReader, model: str) -> dict[int, list[str]]:
    """Layer → ids of the runs of autoencoders on its attention output, the newest first."""
    from attlas.analyses.circuits.frozen import ATTENTION_HOOKS

    found: dict[int, list[str]] = {}
    for run in reader.runs("sae", model):
        parts = str(run.summary.get("hook", "")).split(".")
        if run.summary.get("hook", "").endswith(ATTENTION_HOOKS) and len(parts) > 1 and parts[1].isdigit():
            found.setdefault(int(parts[1]), []).append(run.id)
    return dict(sorted(found.items()))


def _told(reader: WorkspaceReader) -> dict[str, str]:
    """Run of an autoencoder → the newest run that interprets its features."""
    return {parent: run.id for run in reversed(reader.runs("features")) for parent in run.parents}


def _chosen(params: Params, layer: int, runs: list[str]) -> str:
    """The run chosen in the URL, "" for none, the newest otherwise."""
    asked = params.get(f"sae{layer}")
    return "" if asked == "none" else asked if asked in runs else runs[0]


def _whole(params: Params, name: str) -> int | None:
    value = integer(params, name)
    return value if value is not None and 0 <= value < 10**6 else None


def view(data: Data, theme: Theme) -> Any:
    """The prompt and its features, then the chosen view."""
    lead = "What made a model say what it says: features, heads and tokens, traced back with patterns and norms frozen."
    other = data["asked_for"] if data["asked_for"] and data["asked_for"] != data["lm"] else None
    shown: dict[str, Any] = {
        "features": feature_view,
        "attention": attention_view,
        "graph": graph_view,
    }
    if data["view"] == "saved":
        return html.Div([heading("Circuit", lead), tabs(data, VIEWS), saved_view(data, theme)])
    return html.Div(
        [
            heading("Circuit", lead),
            prompt_view(data, theme, f"{other} is not shown here: it predicts no next token." if other else ""),
            *[job_panel(job) for job in data["jobs"].values()],
            _nothing(data),
            ablation_view(data),
            tabs(data, VIEWS),
            shown[data["view"]](data, theme),
        ]
    )


def _nothing(data: Data) -> Any:
    if data["autoencoders"]:
        return None
    return empty(
        "No autoencoders for this model",
        "Without them the circuit is made of heads. With autoencoders on attention outputs it is made of features:",
        f"attlas train --model {data['lm']} --hooks 'blocks.*.attn.hook_z'",
    )


PAGE = Page("/circuit", "Circuit", data, view)
