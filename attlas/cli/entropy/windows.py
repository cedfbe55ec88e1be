"""`attlas entropy windows`: the work, and what is shown of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from attlas.analyses.attention.windows import window_loss
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data, with_classes

if TYPE_CHECKING:
    from attlas.cli.entropy.args import Windows


def run(args: Windows, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace, model = open_workspace(args), open_model(args, out)
    data = load_data(model, args, args.config.seed)
    model = with_classes(model, args, data)
    config = args.config
    if model.cfg.family == "vit" and "windows" not in out.given:
        config = dataclasses.replace(config, windows=(2, 4))  # hops; the default is of positions
    result = window_loss(model, data, config, track=out.track)
    saved = result.save(workspace, model, data.ref)
    table = result.table().to_pylist()
    rows = [("all" if r["layer"] < 0 else r["layer"], r["window"], r["delta"], r["low"], r["high"]) for r in table]
    title = f"{model.name}: rise of the loss, nats (base {result.base_loss:.3f}, {result.sinks} sinks)"
    out.table(title, ["layer", "window", "rise", "low", "high"], rows)
    return done(saved, workspace, result.summary(), out)
