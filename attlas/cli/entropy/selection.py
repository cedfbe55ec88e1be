"""`attlas entropy selection`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.attention.selection import selection_layers
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data

if TYPE_CHECKING:
    from attlas.cli.entropy.args import Selection


def run(args: Selection, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace, model = open_workspace(args), open_model(args, out)
    data = load_data(model, args, args.seed)
    result = selection_layers(model, data, args.config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    rows, k = [], args.config.top_k[0]
    if result.n_queries[k]:
        for n_full in range(1, model.cfg.n_layers + 1):
            best = result.partition(n_full)
            full = " ".join(str(i) for i, s in enumerate(best.selector) if s == i)
            rows.append((n_full, best.value, full))
    title = f"{model.name}: best partitions when a layer keeps {k} keys"
    out.table(title, ["full layers", "mean coverage", "which"], rows[:12])
    return done(saved, workspace, result.summary(), out)
