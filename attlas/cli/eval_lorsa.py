"""`attlas eval` of a Lorsa: the layer's output as it makes it, and as autoencoders of the layer make it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output, open_model
from attlas.cli.inputs import find_lorsa, find_sae, model_of, named
from attlas.cli.options import ModelArgs
from attlas.errors import ConfigError
from attlas.saes.formats import load_sae
from attlas.saes.inputs import held_out
from attlas.saes.lorsa.evaluate import evaluate_layer
from attlas.saes.lorsa.files import load_lorsa

if TYPE_CHECKING:
    from attlas.cli.eval import Args
    from attlas.data.workspace import Run, Workspace
    from attlas.saes.base import SAE
    from attlas.saes.lorsa.model import Lorsa

_SHOWN = ("l0", "explained_variance", "ce_recovered", "ce_increase", "kl", "dead_fraction")


def eval_lorsa(args: Args, workspace: Workspace, source: str, parent: Run | None, out: Output) -> dict[str, Any]:
    """Measure, save, show."""
    odd = sorted({"hook", "controls", "images"} & out.given)
    if odd:
        raise ConfigError(f"--{odd[0]} does not apply to a Lorsa, which stands for a layer's output; leave it out")
    model = open_model(named(model_of(parent, args.model, ModelArgs.model), args), out)
    subjects: dict[str, Lorsa | SAE] = {"lorsa": load_lorsa(source, model.device)}
    parents = [parent.id] if parent else []
    for name in args.beside:
        label, other, run = _beside(workspace, name)
        subjects[label if label not in subjects else f"{label} {len(subjects)}"] = other.to(model.device)
        parents += [run.id] if run else []
    data = held_out(
        model,
        args.text,
        column=args.column,
        split=args.split,
        n_tokens=args.n_tokens,
        seq_len=args.seq_len,
        pad=args.pad,
        seed=args.evaluation.eval_seed,
    )
    result = evaluate_layer(subjects, model, data, args.evaluation, track=out.track)
    record = result.save(workspace, parents=parents)
    by = {(row["subject"], row["metric"]): row for row in result.rows}
    rows = [
        (name, by[name, "l0"]["note"], *[by[name, m]["value"] if (name, m) in by else None for m in _SHOWN])
        for name in subjects
    ]
    title = f"Output of layer {result.layer}'s attention, {model.name}, {result.rows[0]['n_tokens']:,} tokens"
    out.table(title, ("", "", "L0", "EV", "CE rec.", "CE +nats", "KL", "dead"), rows)
    found = {record.id: {"summary": result.summary(), "evaluation": result.rows}}
    return {"workspace": str(workspace.path), "runs": [record.id], "results": found}


def _beside(workspace: Workspace, name: str) -> tuple[str, SAE | Lorsa, Run | None]:
    """What is measured beside it: a short name, the weights, their run."""
    lorsa = find_lorsa(workspace, name)
    if lorsa is not None:
        return "lorsa", load_lorsa(lorsa[0]), lorsa[1]
    source, run = find_sae(workspace, name)
    sae = load_sae(source)
    return sae.cfg.arch, sae, run
