"""`attlas redundancy`: which layers do little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from attlas.analyses.redundancy import RedundancyConfig, redundancy
from attlas.cli.common import ModelArgs, OutArgs, Output, open_model, open_workspace
from attlas.cli.inputs import DataArgs, load_data


@dataclass(frozen=True)
class Args(DataArgs, ModelArgs, OutArgs):
    """Score how much every attention, MLP and block turns the residual stream; a low score marks a redundant one.

    Example: attlas redundancy --model gpt2-mini --n-tokens 65536 --workspace workspace
    """

    config: Annotated[RedundancyConfig, tyro.conf.arg(name="")] = field(default_factory=RedundancyConfig)


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace = open_workspace(args)
    model = open_model(args, out)
    data = load_data(model, args, args.config.seed)
    result = redundancy(model, data, args.config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    ranking = result.ranking()
    out.table(
        f"{model.name}: most redundant modules first ({result.n_tokens:,} tokens; 1 − cosine)",
        ["module", "score"],
        [(f"{module} {layer}", score) for layer, module, score in ranking[:10]],
    )
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **result.summary(), "ranking": ranking}
