"""`attlas heads weights`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.heads.weights import KINDS, HeadWeights, head_weights
from attlas.cli.common import Output, done, open_model, open_workspace

if TYPE_CHECKING:
    from attlas.cli.heads.args import Weights

MOST_ROWS = 12


def run(args: Weights, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace, model = open_workspace(args), open_model(args, out)
    result = head_weights(model, args.config, out.track)
    saved = result.save(workspace, model.ref)
    _show(result, model.name, out)
    return done(saved, workspace, result.summary(), out)


def _show(result: HeadWeights, model: str, out: Output) -> None:
    """Heads whose strongest composition passes that of random weights most."""
    rows = []
    for row in result.ratios:
        kind = max(KINDS, key=lambda kind: row[f"{kind}_composition"])
        ends = f"{row['from_layer']}.{row['from_head']} → {row['layer']}.{row['head']}"
        rows.append((ends, kind.upper(), row[f"{kind}_composition"], row["random"]))
    rows.sort(key=lambda row: -row[2])
    out.table(f"{model}: strongest composition by weights", ["heads", "by", "ratio", "at random"], rows[:MOST_ROWS])
