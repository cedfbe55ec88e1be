"""`attlas features`: what a sparse autoencoder's features do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from attlas.analyses.features import FeaturesConfig, features
from attlas.cli.common import ModelArgs, OutArgs, Output, open_model, open_workspace
from attlas.cli.export import find_sae
from attlas.cli.inputs import DataArgs, load_data


@dataclass(frozen=True)
class Args(DataArgs, ModelArgs, OutArgs):
    """Interpret a sparse autoencoder: examples, heads, attribution, logits, families.

    Example: attlas features --workspace workspace --n-tokens 100000
    """

    sae: str | None = None
    """A run id of the workspace, a path, or saelens:RELEASE/ID; by default the newest SAE of the workspace."""
    hook: str | None = None
    """Where it sits; by default the hook it was trained on."""
    config: Annotated[FeaturesConfig, tyro.conf.arg(name="")] = field(default_factory=FeaturesConfig)


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    from attlas.saes.formats import load_sae

    workspace = open_workspace(args)
    source, parent = find_sae(workspace, args.sae)
    sae = load_sae(source)
    name = args.model
    if parent is not None and args.model == Args.model:
        name = str(parent.config.get("model", args.model))
    model = open_model(ModelArgs(model=name, device=args.device, dtype=args.dtype), out)
    data = load_data(model, args, args.config.seed)
    result = features(model, sae.to(model.device), data, args.config, hook=args.hook, track=out.track)
    saved = result.save(workspace, model.ref, data.ref, parents=(parent.id,) if parent else ())
    rows = sorted(result.table().to_pylist(), key=lambda r: -r["max_act"] if r["n_active"] >= 10 else 0.0)[:10]
    out.table(
        f"{sae.cfg.hook_name} of {model.name}: {sae.cfg.d_sae} features, {result.n_tokens:,} tokens; strongest ten",
        ["feature", "density", "max", "head", "share", "family", "active on"],
        [
            (r["feature"], r["density"], r["max_act"], r["top_head"], r["top_head_share"], r["family"], r["top_tokens"])
            for r in rows
        ],
    )
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **result.summary()}
