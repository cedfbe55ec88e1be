"""ViT heads: which matter, how far they attend, what they draw, how many can go, which patches they need."""

from __future__ import annotations

from typing import Any

import numpy as np

from attlas.dashboard.page import Data, Page, Params, integer, parse_heads
from attlas.dashboard.pages.vit.view import ABLATIONS, METRICS, STRENGTH, view
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.data.workspace import Run

MOST_POINTS = 3000
COLOR_BY = ("cluster", "layer", "head", "importance")


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Importance under the chosen metric and ablation; strength and rings of the chosen head; patterns; removals."""
    run = reader.pick("vit", params.get("run"), params.get("model"))
    rows = reader.rows(run, "importance", ("layer", "head"))
    if run is None or not rows:
        return {"run": None, "model": params.get("model")}
    ablations = sorted({r["ablation"] for r in rows}, key=lambda a: [*ABLATIONS, a].index(a))
    ablation = params.get("ablation") if params.get("ablation") in ablations else ablations[0]
    metrics = [m for m in METRICS if any(r["metric"] == m and r["ablation"] == ablation for r in rows)]
    first = run.summary.get("metric") if run.summary.get("metric") in metrics else metrics[0]
    metric = params.get("metric") if params.get("metric") in metrics else first
    beside = {(r["layer"], r["head"], r["ablation"]): r["value"] for r in rows if r["metric"] == metric}
    others = [a for a in ablations if a != ablation]
    shown = [
        {**r, **{f"set to {a}": beside.get((r["layer"], r["head"], a)) for a in others}}
        for r in rows
        if r["metric"] == metric and r["ablation"] == ablation
    ]
    top = max(shown, key=lambda r: r["value"])
    heads = {(r["layer"], r["head"]) for r in shown}
    top_head = int(top["layer"]), int(top["head"])
    layer, head = integer(params, "layer"), integer(params, "head")
    layer, head = (top_head[0] if layer is None else layer), (top_head[1] if head is None else head)
    if (layer, head) not in heads:
        layer, head = top_head
    strength = params.get("strength") if params.get("strength") in STRENGTH else "mean_distance_px"
    return {
        "run": run.id,
        "model": run.model.name,
        "n_images": run.summary.get("n_images"),
        "zero_shot": run.config.get("zero_shot"),
        "ablation": ablation,
        "ablations": ablations,
        "metric": metric,
        "default_metric": first,
        "metrics": metrics,
        "strength": strength,
        "layer": layer,
        "head": head,
        "top_head": list(top_head),
        "lit": [h for h in parse_heads(params.get("heads")) if h in heads],
        "importance": shown,
        "agreement": reader.rows(run, "agreement", ("first", "second")),
        "trend": reader.rows(run, "trend"),
        "strengths": reader.rows(run, "strength", ("layer", "head")),
        "rings": reader.rows(run, "rings", ("hop",), layer=layer, head=head),
        "all_rings": reader.rows(run, "rings", ("layer", "head", "hop")),
        "maps": maps_of(reader.arrays(run, "maps"), layer),
        "summary": run.summary,
        "patterns": _patterns(reader, params, run.model.name),
        "pruning": _pruning(reader, run.model.name),
        "tokens": _tokens(reader, params, run.model.name),
    }


def maps_of(arrays: dict[str, np.ndarray], layer: int) -> list[list[list[float]]]:
    """Recentred mean maps of one layer's heads, 4 digits."""
    maps = arrays.get("recentred")
    return [] if maps is None or layer >= len(maps) else np.round(maps[layer].astype(float), 4).tolist()


def _patterns(reader: WorkspaceReader, params: Params, model: str) -> dict[str, Any] | None:
    """The newest vit_patterns run of the model: points of the plane, clusters with prototypes, quality."""
    run = reader.pick("vit_patterns", None, model)
    path = reader.table_file(run, "patterns")
    if run is None or path is None:
        return None
    columns = ("map", "x", "y", "layer", "head", "cluster")
    rows = reader.rows(run, "patterns", ("map",), limit=200_000)
    step = -(-len(rows) // MOST_POINTS)
    wanted = integer(params, "map")
    kept = [r for i, r in enumerate(rows) if i % step == 0 or r["map"] == wanted]
    prototypes = reader.arrays(run, "patterns").get("prototypes", np.zeros((0, 1, 1)))
    clusters = reader.rows(run, "clusters", ("cluster",))
    cluster = integer(params, "cluster")
    cluster = cluster if any(c["cluster"] == cluster for c in clusters) else None
    members = [r["map"] for r in rows if r["cluster"] == cluster]
    return {
        "run": run.id,
        "n_maps": len(rows),
        "points": {c: [round(r[c], 3) if isinstance(r[c], float) else r[c] for r in kept] for c in columns},
        "clusters": clusters,
        "prototypes": np.round(prototypes.astype(float), 4).tolist(),
        "quality": reader.rows(run, "pattern_quality"),
        "color": params.get("color") if params.get("color") in COLOR_BY else "cluster",
        "cluster": cluster,
        "members": members[:: max(1, len(members) // 12)][:12],
        "chosen": next((r for r in rows if r["map"] == wanted), None),
    }


def _pruning(reader: WorkspaceReader, model: str) -> dict[str, Any] | None:
    run = reader.pick("vit_pruning", None, model)
    if run is None:
        return None
    metric = run.summary.get("metric")
    rows = reader.rows(run, "pruning_curve", ("order", "n_pruned"), metric=metric)
    if not rows:
        return None
    ablation = run.summary.get("ablation", "zero")
    return {"run": run.id, "metric": metric, "ablation": ablation, "rows": rows, "summary": run.summary}


def _tokens(reader: WorkspaceReader, params: Params, model: str) -> dict[str, Any] | None:
    run: Run | None = reader.pick("vit_tokens", None, model)
    if run is None:
        return None
    metric = run.summary.get("metric")
    rows: list[Row] = reader.rows(run, "removal", ("order", "fraction"), metric=metric)
    layers = sorted({r["layer"] for r in rows})
    if not layers:
        return None
    before = integer(params, "before")
    before = before if before in layers else layers[0]
    return {
        "run": run.id,
        "metric": metric,
        "layers": layers,
        "before": before,
        "rows": [r for r in rows if r["layer"] == before],
        "rollout": reader.rows(run, "rollout", ("test", "method")),
    }


PAGE = Page("/vit", "ViT heads", data, view)
