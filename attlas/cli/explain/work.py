"""What `attlas explain` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attlas.analyses.common.columns import Head
from attlas.analyses.explain import Asker, Endpoint, ExplanationsResult, LocalExplainer, explain, explain_heads
from attlas.analyses.explain.explainer import Explainer
from attlas.cli.common import Output, open_model, open_workspace
from attlas.cli.inputs import find_sae, load_text, named, open_model_of
from attlas.cli.options import ModelArgs
from attlas.data.notes import NoteBook, parse_subject
from attlas.data.workspace import Run, Workspace
from attlas.errors import ConfigError
from attlas.saes.formats import load_sae

if TYPE_CHECKING:
    from attlas.cli.explain import Args


def run(args: Args, out: Output) -> dict[str, Any]:
    """Ask, score, save, show."""
    workspace = open_workspace(args)
    out.how_to_go_on = lambda: f"answers are kept; the same command goes on: {out.command()}"
    asker = Asker(_explainer(args, out), workspace.path, args.max_requests, args.max_tokens)
    result, saved = (_heads if args.heads else _features)(args, workspace, asker, out)
    _show(result, out)
    n_noted = to_notes(NoteBook(workspace.path), result.labels()) if args.to_notes else 0
    if args.to_notes:
        out.say(f"{n_noted} labels taken over into the notes")
    summary = result.summary()
    out.say(f"wrote run {saved.id} to {workspace.path}")
    if summary["n_left"]:
        out.say(f"the budget ended with {summary['n_left']} left; with a larger one the same command goes on")
    return {"run": saved.id, **summary, "labels": result.labels()} | ({"n_noted": n_noted} if args.to_notes else {})


def _explainer(args: Args, out: Output) -> Explainer:
    if (args.explainer is None) == (args.endpoint is None):
        raise ConfigError("name who answers: --explainer MODEL for one on this machine, or --endpoint URL")
    if args.endpoint is not None:
        return Endpoint(args.endpoint, args.endpoint_model, args.timeout)
    return LocalExplainer(open_model(named(str(args.explainer), args), out))


def _features(args: Args, workspace: Workspace, asker: Asker, out: Output) -> tuple[ExplanationsResult, Run]:
    source, parent = find_sae(workspace, args.sae)
    told = next((r for r in workspace.runs("features") if parent is not None and parent.id in r.parents), None)
    chosen = chosen_features(args, workspace, parent, told)
    model = open_model_of(args, parent, out)
    sae = load_sae(source).to(model.device)
    text = load_text(model, args, args.config.seed)
    of = parent.id if parent is not None else source
    result = explain(model, sae, text, chosen, asker, args.config, of=of, track=out.track)
    parents = tuple(r.id for r in (parent, told) if r is not None)
    return result, result.save(workspace, model.ref, text.ref, parents=parents)


def chosen_features(args: Args, workspace: Workspace, sae: Run | None, told: Run | None) -> list[int]:
    """The features that the options name.

    Raises:
        ConfigError: there is no such, or no run of `attlas features` to choose from.
    """
    if args.features:
        return list(args.features)
    if args.starred:
        notes = NoteBook(workspace.path).all("feature", sae.id if sae is not None else "")
        starred = sorted(parse_subject(note.subject)[2][0] for note in notes if note.star)
        if not starred:
            raise ConfigError("no feature of this autoencoder has a star; give --features, or star some")
        return starred
    if told is None:
        raise ConfigError("what fires is not known yet: run attlas features first, or give --features")
    table = workspace.read_table(told, "features").select(["feature", "max_act", "n_active"]).to_pydict()
    rows = [(m, f) for f, m, n in zip(*table.values(), strict=True) if n]
    if not rows:
        raise ConfigError(f"no feature fires in run '{told.id}'; run attlas features on more tokens")
    if args.top is not None:
        return [f for _, f in sorted(rows, reverse=True)[: max(1, args.top)]]
    drawn = np.random.default_rng(args.config.seed).permutation(len(rows))[: max(1, args.n)]
    return [rows[i][1] for i in drawn]


def _heads(args: Args, workspace: Workspace, asker: Asker, out: Output) -> tuple[ExplanationsResult, Run]:
    told = next(
        (r for r in workspace.runs("heads") if r.model.name == args.model or args.model == ModelArgs.model), None
    )
    if told is None:
        raise ConfigError(f"'{workspace.path}' holds no run of heads of {args.model}; run attlas heads first")
    sequences, texts = (workspace.read_table(told, name) for name in ("head_sequences", "head_texts"))
    there = sorted(set(zip(sequences["layer"].to_pylist(), sequences["head"].to_pylist(), strict=True)))
    name = told.model.name
    chosen = _chosen_heads(args.heads, there)
    if args.starred:
        notes = NoteBook(workspace.path).all("head", name)
        starred = {parse_subject(note.subject)[2] for note in notes if note.star}
        chosen = [head for head in chosen if head in starred]
    result = explain_heads(sequences, texts, name, chosen, asker, args.config, track=out.track)
    return result, result.save(workspace, told.model, told.data, parents=(told.id,))


def _chosen_heads(names: tuple[str, ...], there: list[Head]) -> list[Head]:
    if names == ("all",):
        return there
    found = []
    for name in names:
        layer, _, head = name.partition(".")
        if not (layer.isdecimal() and head.isdecimal()):
            raise ConfigError(f"'{name}' is no head; write such as 3.0, or all")
        found.append((int(layer), int(head)))
    return found


def to_notes(book: NoteBook, labels: dict[str, str]) -> int:
    """Write labels where no person wrote one; how many were written."""
    written = 0
    for subject, label in labels.items():
        note = book.read(subject)
        if not note.label or note.author == "model":
            book.write(subject, label=label, author="model")
            written += 1
    return written


def _show(result: ExplanationsResult, out: Output) -> None:
    scores = {(j.case.subject, j.test): j.row() for j in result.judged}

    def shown(subject: str, test: str) -> str:
        row = scores.get((subject, test))
        if row is None:
            return "–"
        control = "" if row["control_accuracy"] is None else f" ({row['control_accuracy']:.2f})"
        return f"{row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]{control}"

    out.table(
        f"labels by {result.explainer}; balanced accuracy [95 % interval] (with another's label), 0.5 is chance",
        ["which", "label", "detection", "fuzzing", "outcome"],
        [
            (
                e.case.subject.rpartition("/")[2],
                e.label or "–",
                *(shown(e.case.subject, test) for test in ("detection", "fuzzing")),
                e.outcome,
            )
            for e in result.explained
        ],
    )
    told = result.summary()
    for test in ("detection", "fuzzing"):
        if test in told:
            control = f", with another's label {told[f'{test}_control']:.3f}" if f"{test}_control" in told else ""
            low = told.get(f"{test}_low")
            span = f" [{low:.3f}, {told[f'{test}_high']:.3f}]" if low is not None else ""
            out.say(f"{test}: {told[test]:.3f}{span} over {told[f'n_{test}']}{control}")
