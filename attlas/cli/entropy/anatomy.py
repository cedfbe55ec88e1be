"""`attlas entropy anatomy`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.attention.anatomy import map_anatomy
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data

if TYPE_CHECKING:
    from attlas.cli.entropy.args import Anatomy


def run(args: Anatomy, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace, model = open_workspace(args), open_model(args, out)
    data = load_data(model, args, args.config.seed)
    result = map_anatomy(model, data, args.config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    shown = ("label", "label_score", "entropy", "sink_mass", "local", "repeat_previous_token", "repeat_induction")
    table = result.table().to_pylist()
    rows = [(f"{r['layer']}.{r['head']}", *[r[name] for name in shown]) for r in table if r["label"] != "unassigned"]
    out.table(f"{model.name}: labelled heads ({result.n_queries:,} queries)", ["head", *shown], rows[:24])
    return done(saved, workspace, result.summary(), out)
