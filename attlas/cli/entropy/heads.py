"""`attlas entropy heads`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attlas.analyses.attention.head_entropy import entropy
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data, show_plan
from attlas.saes.scaling.passes import PassPlan, plan_pass

if TYPE_CHECKING:
    from attlas.cli.entropy.args import Heads


def run(args: Heads, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    if args.plan:
        return show_plan(_plan(args), out)
    workspace, model = open_workspace(args), open_model(args, out)
    data = load_data(model, args, args.config.seed)
    result = entropy(model, data, args.config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    columns = result.columns
    shown = ["entropy", "normalized", "lower_bound", "sink_mass", "previous_token", "induction"]
    shown += ["learned_sink"] if np.nansum(columns["learned_sink"]) > 0 else []
    sharpest = np.argsort(columns["entropy"], axis=None)[:8]
    rows = []
    for flat in sharpest:
        at = np.unravel_index(flat, columns["entropy"].shape)
        rows.append((f"{at[0]}.{at[1]}", *[float(columns[name][at]) for name in shown]))
    out.table(f"{model.name}: sharpest heads ({result.n_queries:,} queries; entropy in nats)", ["head", *shown], rows)
    return done(saved, workspace, result.summary(), out)


def _plan(args: Heads) -> PassPlan:
    memory = None if args.gpu_memory is None else args.gpu_memory * 1e9
    return plan_pass(
        args.model,
        hooks=None,
        n_tokens=args.n_tokens,
        seq_len=args.seq_len,
        batch=args.config.batch_size,
        dtype=args.dtype,
        device=args.gpu,
        memory=memory,
    )
