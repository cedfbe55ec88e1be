"""`attlas heads similar`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.heads.similar import SimilarHeads, similar_heads
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data, named

if TYPE_CHECKING:
    from attlas.cli.heads.args import Similar

MOST_ROWS = 12


def run(args: Similar, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    model = open_model(args, out)
    other = None
    if args.other is not None:
        other = open_model(named(args.other, args), out)
    data = load_data(model, args, args.config.seed)
    result = similar_heads(model, data, args.config, other=other, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    _show(result, model.name, out)
    return done(saved, workspace, result.summary(), out)


def _show(result: SimilarHeads, model: str, out: Output) -> None:
    """Clusters of two heads or more, by their centre."""
    rows = []
    by_cluster: dict[int, list[dict[str, Any]]] = {}
    for row in result.tables()["head_clusters"].to_pylist():
        by_cluster.setdefault(row["pattern_cluster"], []).append(row)
    for members in by_cluster.values():
        if len(members) > 1:
            centre = next(row for row in members if row["centre"])
            rows.append((_name(centre), len(members), ", ".join(map(_name, members)), centre["within"]))
    out.table(f"{model}: heads of like patterns", ["centre", "heads", "which", "similarity"], rows[:MOST_ROWS])
    summary = result.summary()
    if "random_n_clusters" in summary:
        out.say(
            f"{summary['n_clusters']} clusters, {summary['n_alone']} of one head; {summary['random_n_clusters']} of a model "
            "with random weights, whose maps are near even"
        )


def _name(row: dict[str, Any]) -> str:
    return f"{'*' if row['of_model'] else ''}{row['layer']}.{row['head']}"
