"""`attlas entropy window-loss`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.attention.windows import WindowConfig, window_loss
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data

if TYPE_CHECKING:
    from attlas.cli.entropy import Args


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace, model = open_workspace(args), open_model(args, out)
    data = load_data(model, args, args.config.seed)
    widths = args.windows or ((2, 4) if model.cfg.family == "vit" else WindowConfig().windows)
    config = WindowConfig(widths, args.sinks, args.config.batch_size, args.config.seed)
    result = window_loss(model, data, config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    table = result.table().to_pylist()
    rows = [("all" if r["layer"] < 0 else r["layer"], r["window"], r["delta"], r["low"], r["high"]) for r in table]
    title = f"{model.name}: rise of the loss, nats (base {result.base_loss:.3f}, {result.sinks} sinks)"
    out.table(title, ["layer", "window", "rise", "low", "high"], rows)
    return done(saved, workspace, result.summary(), out)
