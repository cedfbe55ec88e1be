"""`attlas entropy cost`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.attention.cost import cost_profile
from attlas.cli.common import Output, done, open_model, open_workspace

if TYPE_CHECKING:
    from attlas.cli.entropy.args import Cost


def run(args: Cost, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace, model = open_workspace(args), open_model(args, out)
    result = cost_profile(model, args.config, track=out.track)
    saved = result.save(workspace, model.ref)
    rows = [(length, value, 1 - value) for length, value in result.share().items()]
    title = f"{model.name}: share of the time on {result.device} ({result.threads} threads)"
    out.table(title, ["tokens", "attention", "FFN"], rows)
    return done(saved, workspace, result.summary(), out)
