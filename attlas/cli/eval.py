"""`attlas eval`: how well a sparse autoencoder reconstructs, and what the model loses when it is spliced in."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output, open_model, open_workspace
from attlas.cli.inputs import find_lorsa, find_saes, model_of, named, with_classes
from attlas.cli.options import ClassArgs, ModelArgs, OutArgs, TextArgs
from attlas.cli.together import join
from attlas.errors import ConfigError
from attlas.saes.evaluation.config import EvalConfig

if TYPE_CHECKING:
    from attlas.data.workspace import Run, Workspace
    from attlas.saes.base import SAE
    from attlas.saes.evaluation.measure import EvalResult


@dataclass(frozen=True)
class Args(TextArgs, ClassArgs, ModelArgs, OutArgs):
    """Evaluate a sparse autoencoder on held-out text or images, beside its controls.

    Any SAE that Attlas reads will do: a run of this workspace (the newest when none is named), a folder of SAELens,
    sparsify or dictionary_learning, an original .pt file, or saelens:RELEASE/ID.

    For example:

        attlas eval --sae workspace/runs/sae-gpt2-mini-0a1b2c3d --n-tokens 65536

        attlas eval --sae LORSA-RUN --beside SAE-RUN
    """

    n_tokens: int = 8_192
    """How many tokens to use; more make the intervals narrower, in proportion to the time."""
    sae: str | None = None
    """A run id of the workspace, a path, RELEASE/PATH (attlas models saes), or saelens:RELEASE/ID;
    by default every SAE of the newest training."""
    hook: str | None = None
    """Where to splice it in; by default the hook it was trained on."""
    images: str | None = None
    """For vision models: embedded:glyphs, sklearn:samples, a folder or .npz."""
    n_images: int = 500
    """How many images to use."""
    beside: tuple[str, ...] = ()
    """With a Lorsa: autoencoders (or Lorsas) of the same layer, measured beside it on the layer's output."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)


def run(args: Args, out: Output) -> dict[str, Any]:
    from attlas.saes.evaluation.measure import evaluate_all
    from attlas.saes.inputs import held_out

    workspace = open_workspace(args)
    group = join(args.device)
    found = find_lorsa(workspace, args.sae)
    if found is not None:
        from attlas.cli.eval_lorsa import eval_lorsa

        return eval_lorsa(args, workspace, *found, out)
    if args.beside:
        raise ConfigError("--beside is for a Lorsa (--sae LORSA); autoencoders are measured each for itself")
    targets = _targets(args, workspace)
    model_name = model_of(targets[0][1], args.model, Args.model)
    model = open_model(named(model_name, args), out)
    data = held_out(
        model,
        args.text,
        args.images,
        column=args.column,
        split=args.split,
        n_tokens=args.n_tokens,
        n_images=args.n_images,
        seq_len=args.seq_len,
        pad=args.pad,
        chat=args.chat,
        seed=args.evaluation.eval_seed,
    )
    model = with_classes(model, args, data)
    results = {}
    parent = targets[0][1]
    if parent is not None and parent.data is not None and parent.data.name == data.ref.name:
        warnings.warn(f"'{data.ref.name}' is what {parent.id} was trained on, not held out from it", stacklevel=1)
    saes = [(sae.to(model.device), args.hook) for sae, _ in targets]
    measured = evaluate_all(saes, model, data, args.evaluation, track=out.track, group=group)
    if not group.first:
        return {}
    for (sae, parent), result in zip(targets, measured, strict=True):
        record = result.save(workspace, model, parents=(parent.id,) if parent else ())
        _show(result, args.hook or sae.cfg.hook_name, sae, model.name, out)
        results[record.id] = {"summary": result.summary(), "evaluation": result.rows}
    return {"workspace": str(workspace.path), "runs": list(results), "results": results}


def _show(result: EvalResult, hook: str, sae: SAE, model_name: str, out: Output) -> None:
    """Metrics down, the SAE (with its interval) and its controls across."""
    by = {(row["metric"], row["subject"]): row for row in result.rows}
    subjects = list(dict.fromkeys(row["subject"] for row in result.rows))
    rows = []
    for metric in dict.fromkeys(row["metric"] for row in result.rows):
        own = by[metric, "sae"]
        interval = "" if own["low"] is None else f"{own['low']:.3g} … {own['high']:.3g}"
        controls = [by[metric, subject]["value"] if (metric, subject) in by else "—" for subject in subjects[1:]]
        rows.append((metric, own["value"], interval, *controls))
    share = f"{result.config.confidence:.0%} interval"
    title = f"{hook} of {model_name}: {sae.cfg.arch}, {sae.cfg.d_sae} features, {result.rows[0]['n_tokens']:,} tokens"
    out.table(title, ("metric", "sae", share, *[name.split("_")[0] for name in subjects[1:]]), rows)


def _targets(args: Args, workspace: Workspace) -> list[tuple[SAE, Run | None]]:
    """The SAEs to evaluate, each with its run where it has one."""
    from attlas.saes.formats import load_sae

    return [(load_sae(source), parent) for source, parent in find_saes(workspace, args.sae)]
