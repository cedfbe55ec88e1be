"""Overview: what this workspace holds, its headline numbers, and what to run next."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.dashboard.components import card, columns, empty, heading, metric_cards, tag
from attlas.dashboard.page import Data, Page, Params, link
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.run_kinds import KINDS, headline
from attlas.dashboard.theme import Theme
from attlas.data.workspace import Run

# What a workspace is worth having of everything, in the order to run it.
_NEXT = ("sae", "sae_eval", "features", "entropy", "redundancy", "drop_curve", "patching", "vit", "vit_patterns")


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Runs, newest first, and the newest headline numbers of the chosen model."""
    model = params.get("model")
    runs = reader.runs(model=model if model in reader.models() else None)
    newest: dict[str, Run] = {}
    for run in runs:
        newest.setdefault(run.kind, run)
    evaluation = newest["sae_eval"].summary if "sae_eval" in newest else {}
    features = newest["features"].summary if "features" in newest else {}
    return {
        "model": model,
        "runs": [
            {
                "id": run.id,
                "kind": run.kind,
                "model": run.model.name,
                "data": run.data.name if run.data else None,
                "created": run.created,
                "headline": headline(run),
                "attlas_version": run.attlas_version,
            }
            for run in runs
        ],
        "numbers": {
            "explained_variance": evaluation.get("explained_variance"),
            "ce_recovered": evaluation.get("ce_recovered"),
            "l0": evaluation.get("l0"),
            "features": features.get("n_features"),
            "dead_fraction": features.get("dead_fraction", evaluation.get("dead_fraction")),
            "induction_head": newest["entropy"].summary.get("induction_head") if "entropy" in newest else None,
            "top_vit_head": newest["vit"].summary.get("top_head") if "vit" in newest else None,
        },
        "missing": [kind for kind in _NEXT if kind not in newest],
    }


def view(data: Data, theme: Theme) -> Any:
    """Headline numbers, cards that lead on, the list of runs."""
    if not data["runs"]:
        return html.Div(
            [
                heading("Overview", "What the heads, layers and sparse features of your models do."),
                empty(
                    "This workspace is empty", "Run the whole job on the embedded models, in minutes:", "attlas demo"
                ),
            ]
        )
    numbers = data["numbers"]
    return html.Div(
        [
            heading("Overview", "What the heads, layers and sparse features of your models do."),
            metric_cards(
                [
                    ("CE loss recovered", numbers["ce_recovered"], "of the loss that zeroing the layer costs"),
                    ("Explained variance", numbers["explained_variance"], "of the attention output"),
                    ("L0", numbers["l0"], "features active a token"),
                    ("Features", numbers["features"], _dead(numbers["dead_fraction"])),
                    ("Induction head", numbers["induction_head"], "layer.head, highest score"),
                    ("ViT head that matters", numbers["top_vit_head"], "layer.head, pruned alone"),
                ]
            ),
            columns(_doors(data), _next(data)),
            card("Runs", html.Ul([_run(run) for run in data["runs"]], className="runs"), note="Newest first."),
        ]
    )


def _dead(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f} % of them dead"


def _doors(data: Data) -> Any:
    kinds = {run["kind"] for run in data["runs"]}
    doors = [
        ("/features", "Features", "What each sparse feature fires on, which head wrote it, what it promotes."),
        ("/survey", "Survey", "What each head is for; how two autoencoders compare."),
        ("/layers", "Layers", "How sharply each head attends, and which layers do little."),
        ("/health", "Health", "Heads over training, collapse, windows, cost."),
        ("/prune", "Prune", "What dropping layers and heads costs, and its side effects."),
        ("/circuit", "Circuit", "A prompt traced back through features, heads and tokens."),
        ("/vit", "ViT heads", "Which heads of a vision model matter, how far they attend, what they draw."),
        ("/image", "Image", "A picture under every head; the model without some of its heads."),
        ("/training", "Training", "Curves of every autoencoder."),
        ("/evaluation", "Evaluation", "Autoencoders beside their controls, with intervals."),
    ]
    shown = {KINDS[kind].path for kind in kinds & KINDS.keys()} | {"/circuit", "/image"}  # these need no run
    items = [
        html.Li(
            [dcc.Link(name, href=link(path, model=data["model"]), className="door"), html.Span(text, className="sub")]
        )
        for path, name, text in doors
        if path in shown
    ]
    return card("Where to look", html.Ul(items, className="runs"))


def _next(data: Data) -> Any:
    if not data["missing"]:
        text = "Everything has been run once. Other models and layers are one command away:"
        commands = ["attlas models get smollm2-135m", "attlas train --model smollm2-135m --hooks blocks.5.attn.hook_z"]
    else:
        text = "Not in this workspace yet:"
        commands = [KINDS[kind].command for kind in data["missing"][:4]]
    return card("What to run next", html.P(text, className="note"), *[html.Pre(html.Code(c)) for c in commands])


def _run(run: dict[str, Any]) -> html.Li:
    kind = KINDS.get(run["kind"])
    title: Any = html.Span(run["kind"])
    if kind is not None:
        title = dcc.Link(kind.name, href=link(kind.path, run=run["id"], model=run["model"], **kind.query))
    about = [run["model"], run["data"], run["created"][:16].replace("T", " ") + " UTC"]
    return html.Li(
        [
            tag(run["kind"]),
            html.Div(
                [
                    html.Div([title, html.Span(f"  {run['headline']}")]),
                    html.Div(" · ".join(part for part in about if part), className="sub"),
                ]
            ),
        ]
    )


PAGE = Page("/", "Overview", data, view)
