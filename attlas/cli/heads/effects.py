"""`attlas heads effects`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.heads.logits import head_logits
from attlas.analyses.redundancy.heads import HeadEffectsConfig, head_effects
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data, with_classes
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.cli.heads.args import Effects

MOST_ROWS = 12


def run(args: Effects, out: Output) -> dict[str, Any]:
    """Compute, save, show: a run of ablations, and one of logits where there are next tokens."""
    workspace = open_workspace(args)
    model = open_model(args, out)
    data = load_data(model, args, args.config.seed)
    model = with_classes(model, args, data)
    found: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    if args.ablations:
        config = HeadEffectsConfig(args.ablations, batch_size=args.config.batch_size, seed=args.config.seed)
        effects = head_effects(model, data, config, track=out.track)
        columns = {f"Δ loss, {name}": effects.mean(name) for name in args.ablations}
        found["effects"] = done(effects.save(workspace, model, data.ref), workspace, effects.summary(), out)
    if isinstance(data, TokenDataset):
        logits = head_logits(model, data, args.config, track=out.track)
        columns["direct logit"] = logits.direct.mean(0)
        found["logits"] = done(logits.save(workspace, model, data.ref), workspace, logits.summary(), out)
    if not columns:
        raise ConfigError(f"{model.name} has no next tokens whose logits heads could raise; give --ablations")
    first = next(iter(columns.values()))
    order = sorted(((float(-value), at) for at, value in _each(first)))[:MOST_ROWS]
    rows = [(f"{layer}.{head}", *(float(m[layer, head]) for m in columns.values())) for _, (layer, head) in order]
    out.table(f"{model.name}: heads that matter most (nats; logits)", ["head", *columns], rows)
    return found


def _each(values: Any) -> list[tuple[tuple[int, int], float]]:
    return [((layer, head), value) for layer, row in enumerate(values.tolist()) for head, value in enumerate(row)]
