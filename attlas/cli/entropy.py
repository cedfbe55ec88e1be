"""`attlas entropy`: how sharply each head attends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import tyro

from attlas.analyses.entropy import EntropyConfig, entropy
from attlas.cli.common import ModelArgs, OutArgs, Output, open_model, open_workspace
from attlas.cli.inputs import DataArgs, load_data


@dataclass(frozen=True)
class Args(DataArgs, ModelArgs, OutArgs):
    """Measure the entropy of every head's attention, its lower bound, and where the mass goes.

    Example: attlas entropy --model gpt2-mini --n-tokens 65536 --workspace workspace
    """

    config: Annotated[EntropyConfig, tyro.conf.arg(name="")] = field(default_factory=EntropyConfig)


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    model = open_model(args, out)
    data = load_data(model, args, args.config.seed)
    result = entropy(model, data, args.config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    columns = result.columns
    shown = ("entropy", "normalized", "lower_bound", "sink_mass", "previous_token", "induction")
    sharpest = np.argsort(columns["entropy"], axis=None)[:8]
    rows = []
    for flat in sharpest:
        at = np.unravel_index(flat, columns["entropy"].shape)
        rows.append((f"{at[0]}.{at[1]}", *[float(columns[name][at]) for name in shown]))
    out.table(f"{model.name}: sharpest heads ({result.n_queries:,} queries; entropy in nats)", ["head", *shown], rows)
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **result.summary()}
