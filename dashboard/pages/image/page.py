"""One image under every head: contact sheet, where a patch attends, rollout, the model without some heads, sparse features."""

from __future__ import annotations

from typing import Any

import numpy as np

from attlas.analyses.vit.one_image import change
from attlas.dashboard.components.maps import data_url
from attlas.dashboard.jobs import POLL_MS, Job
from attlas.dashboard.page import Data, Page, Params, integer, parse_heads
from attlas.dashboard.pages.image.jobs import (
    Picture,
    attention_job,
    heat_job,
    prune_job,
    relevance_job,
    samples_job,
    vit_names,
)
from attlas.dashboard.pages.image.view import view
from attlas.dashboard.reader import WorkspaceReader
from attlas.data.workspace import Run

MOST_CLASSES = 100


def data(reader: WorkspaceReader, params: Params) -> Data:
    """The chosen picture (and one beside it) under every head; without the pruned heads; its sparse features."""
    names = vit_names(reader)
    asked = params.get("model")
    base: Data = {"models": names, "asked": asked, "model": None, "picture": None}
    if asked and asked not in names:
        return base
    name = asked or names[0]
    image, beside = params.get("image") or "0", params.get("beside") or ""
    samples, attention = samples_job(reader, name), attention_job(reader, name, image)
    jobs = [
        (job, job.finished) for job in (samples, attention)
    ]  # told before results are read: a page never misses one
    base |= {"model": name, "image": image, "beside": beside, "overlay": params.get("sheet") == "overlay"}
    base["gallery"] = _gallery(samples)
    pruned = parse_heads(params.get("prune"))
    if attention.state == "done":
        picture: Picture = attention.result
        n_layers, n_heads = picture.attention.patterns.shape[:2]
        layer, head = integer(params, "layer"), integer(params, "head")
        if layer is None or head is None or not (0 <= layer < n_layers and 0 <= head < n_heads):
            layer, head = n_layers - 1, 0
        pruned = [(a, b) for a, b in pruned if a < n_layers and b < n_heads]
        base |= {"layer": layer, "head": head, "pruned": pruned} | _query(params, picture.attention.grid)
        base["picture"] = _shown(picture, base["query"])
        other = attention_job(reader, name, beside) if beside else None
        jobs += [(other, other.finished)] if other else []
        base["other"] = _other(other, base["query"]) if other else None
        pairs = [(image, picture, "effect"), (beside, other.result if other else None, "other_effect")]
        for where, seen, into in pairs:
            if pruned and seen is not None:
                job = prune_job(reader, name, where, pruned)
                jobs.append((job, job.finished))
                base[into] = _effect(seen, job.result)
        base |= _relevance(reader, params, name, image, picture, jobs)
        base |= _features(reader, params, name, image, jobs)
    waiting = [job for job, finished in jobs if not finished]
    bad = [job for job, _ in jobs if job.state not in ("done", "queued", "running")]
    told = next(iter([*bad, *waiting]), attention)
    return base | {"job": told.describe(), "live": POLL_MS if waiting else False}


def _gallery(job: Job) -> list[dict[str, Any]]:
    if job.result is None:
        return []
    thumbnails, captions = job.result
    return [{"image": str(i), "caption": caption, "png": data_url(thumbnails[i])} for i, caption in enumerate(captions)]


def _query(params: Params, grid: tuple[int, int]) -> dict[str, Any]:
    row, column = integer(params, "row"), integer(params, "column")
    inside = row is not None and column is not None and 0 <= row < grid[0] and 0 <= column < grid[1]
    if not inside or row is None or column is None:
        return {"row": None, "column": None, "query": None}
    return {"row": row, "column": column, "query": row * grid[1] + column}


def _shown(picture: Picture, query: int | None) -> dict[str, Any]:
    """One picture as JSON: the image as PNG, the maps of one query, rollout, the answer."""
    seen = picture.attention
    n_patches = seen.grid[0] * seen.grid[1]
    maps = seen.maps(query if query is None or query < n_patches else None)
    return {
        "png": data_url(picture.shown),
        "caption": picture.caption,
        "grid": list(seen.grid),
        "n_prefix": seen.n_prefix,
        "maps": np.round(maps.astype(float), 5).tolist(),
        "pool": None if seen.pool is None else np.round(seen.pool.astype(float), 5).tolist(),
        "rollout": np.round(seen.rollout.astype(float), 6).tolist(),
        "top": _top(picture.classes, seen.answer.probabilities),
    }


def _top(classes: tuple[str, ...], probabilities: np.ndarray | None, n: int = 5) -> list[dict[str, Any]]:
    if probabilities is None:
        return []
    order = np.argsort(-probabilities, kind="stable")[:n]
    return [{"class": int(i), "name": classes[i], "probability": float(probabilities[i])} for i in order]


def _other(job: Job, query: int | None) -> dict[str, Any] | None:
    return _shown(job.result, query) if job.result is not None else None


def _effect(picture: Picture, after: Any) -> dict[str, Any] | None:
    """The answer without the pruned heads, and how far it is from the whole model's."""
    if after is None:
        return None
    before = picture.attention.answer
    rows = []
    if before.probabilities is not None:
        strongest = np.argsort(-np.maximum(before.probabilities, after.probabilities), kind="stable")[:6]
        for i in strongest:
            p, q = float(before.probabilities[i]), float(after.probabilities[i])
            rows.append({"class": int(i), "name": picture.classes[i], "before": p, "after": q, "change": q - p})
    return {"rows": rows, **change(before, after)}


def _relevance(
    reader: WorkspaceReader, params: Params, name: str, image: str, picture: Picture, jobs: list[tuple[Job, bool]]
) -> dict[str, Any]:
    """Relevance of patches for the chosen class, the likeliest by default; nothing for a backbone."""
    probabilities = picture.attention.answer.probabilities
    if probabilities is None:
        return {"class": None, "classes": [], "relevance": None}
    asked = integer(params, "class")
    chosen = asked if asked is not None and 0 <= asked < len(probabilities) else None
    job = relevance_job(reader, name, image, chosen)
    jobs.append((job, job.finished))
    found = None if job.result is None else np.round(job.result.astype(float), 7).tolist()
    return {"class": chosen, "classes": _top(picture.classes, probabilities, MOST_CLASSES), "relevance": found}


def _features(
    reader: WorkspaceReader, params: Params, name: str, image: str, jobs: list[tuple[Job, bool]]
) -> dict[str, Any]:
    """Sparse autoencoders of this model, and what the chosen one's features see in the picture."""
    runs = [r for r in reader.runs("sae", name) if str(r.summary.get("hook", "")).startswith("blocks.")]
    if not runs:
        return {"saes": [], "sae": None, "features": None, "features_run": None}
    run = next((r for r in runs if r.id == params.get("sae")), runs[0])
    job = heat_job(reader, name, image, run)
    jobs.append((job, job.finished))
    found = None
    if job.result is not None:
        found = [
            {"feature": f.feature, "strongest": f.strongest, "heat": np.round(f.heat.astype(float), 5).tolist()}
            for f in job.result
        ]
    return {
        "saes": [{"id": r.id, "hook": r.summary.get("hook")} for r in runs],
        "sae": run.id,
        "features": found,
        "features_run": _told_by(reader, run),
    }


def _told_by(reader: WorkspaceReader, run: Run) -> str | None:
    told = reader.features_run(run.id)
    return told.id if told else None


PAGE = Page("/image", "Image", data, view)
