"""`attlas features firing`: the work, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.features.on_text import firing
from attlas.cli.common import Output, open_workspace
from attlas.cli.inputs import SAEArgs, as_typed, load_saes, open_model_of
from attlas.data.workspace import Run, Workspace
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.cli.features.args import Firing
    from attlas.interp import HookedModel


def _newest(workspace: Workspace, model: HookedModel) -> tuple[str, ...]:
    """The newest autoencoder of each hook of the model."""
    found: dict[str, Run] = {}
    for run in workspace.runs("sae"):
        if run.model is not None and run.model.hash == model.ref.hash:
            found.setdefault(str(run.summary.get("hook", "")), run)
    return tuple(run.id for run in found.values())


def largest_of(workspace: Workspace, saes: tuple[str, ...]) -> dict[tuple[str, int], float]:
    """(hook, feature) → its largest activation on the corpus of the newest features run of each autoencoder."""
    found: dict[tuple[str, int], float] = {}
    for sae in (run for run in workspace.runs("sae") if run.id in saes):
        told = next((run for run in workspace.runs("features") if sae.id in run.parents), None)
        if told is None:
            continue
        table = workspace.read_table(told, "features").select(["feature", "max_act"]).to_pydict()
        hook = str(sae.summary.get("hook"))
        found |= {(hook, f): m for f, m in zip(table["feature"], table["max_act"], strict=True) if m}
    return found


def run(args: Firing, out: Output) -> dict[str, Any]:
    """Encode, rank, show; nothing is saved."""
    workspace = open_workspace(args)
    first = next((r for r in workspace.runs("sae") if not args.sae or r.id == args.sae[0]), None)
    model = open_model_of(args, first, out)
    names = args.sae or _newest(workspace, model)
    if not names:
        raise ConfigError(
            f"'{workspace.path}' holds no autoencoder of {model.name}; train one (attlas train), or give --sae"
        )
    saes = load_saes(model, SAEArgs(names), workspace, out)
    prompt = as_typed(model, args.prompt, args, out)
    found = firing(model, saes, prompt)
    if args.at is not None and not 0 <= args.at < len(found.tokens):
        raise ConfigError(f"--at {args.at} is not a token of the text, which has {len(found.tokens)}, from 0")
    rows = found.ranked(largest_of(workspace, names), at=args.at, skip=args.skip)
    where = f"token {args.at} {found.tokens[args.at]!r} of " if args.at is not None else ""
    out.table(
        f"{where}{prompt[:60]!r}: {len(rows)} features of {len(saes)} autoencoders fire",
        ["feature", "hook", "activation", "of its largest", "at token", "tokens"],
        [
            (
                r["feature"],
                r["hook"],
                f"{r['activation']:.3g}",
                "not known" if r["share"] is None else f"{r['share']:.0%}",
                f"{r['position']} {found.tokens[r['position']]!r}",
                r["n"],
            )
            for r in rows[: args.n]
        ],
    )
    return {"model": model.name, "tokens": list(found.tokens), "hooks": list(found.hooks), "features": rows}
