"""`attlas runs`: the runs of a workspace; named, deleted, had back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from attlas.cli.common import Output
from attlas.cli.options import OutArgs
from attlas.data.notes import NoteBook, run_subject
from attlas.data.runs.trash import bring_back, empty_trash, put_away, runs_away
from attlas.data.workspace import Workspace


@dataclass(frozen=True)
class List(OutArgs):
    """List the runs of a workspace, the newest first, with their names and sizes.

    For example:

        attlas runs --workspace workspace
        attlas runs list --kind sae
        attlas runs list --away
    """

    kind: str = ""
    """Only of this kind, such as sae, features or heads."""
    away: bool = False
    """Those that were deleted and can be had back, instead."""


@dataclass(frozen=True, kw_only=True)
class Name(OutArgs):
    """Give a run a name, which pages and lists show beside its id.

    For example:

        attlas runs name sae-gpt2-mini-c879ab06 "wide, k 16" --workspace workspace
    """

    run: Annotated[str, tyro.conf.Positional]
    """Its id."""
    name: Annotated[str, tyro.conf.Positional]
    """At most 200 characters; "" takes the name away."""


@dataclass(frozen=True, kw_only=True)
class Delete(OutArgs):
    """Delete runs; `attlas runs restore` has them back until `attlas runs purge`.

    For example:

        attlas runs delete entropy-gpt2-mini-0a1b2c3d --workspace workspace
    """

    run: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Their ids."""


@dataclass(frozen=True, kw_only=True)
class Restore(OutArgs):
    """Have deleted runs back.

    For example:

        attlas runs restore entropy-gpt2-mini-0a1b2c3d --workspace workspace
    """

    run: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Their ids."""


@dataclass(frozen=True)
class Purge(OutArgs):
    """Delete the files of all runs that were deleted; they cannot be had back.

    For example:

        attlas runs purge --workspace workspace
    """


Args = (
    Annotated[List, subcommand("list")]
    | Annotated[Name, subcommand("name")]
    | Annotated[Delete, subcommand("delete")]
    | Annotated[Restore, subcommand("restore")]
    | Annotated[Purge, subcommand("purge")]
)
SUB_VERBS = ("list", "name", "delete", "restore", "purge")
DEFAULT_ARGV = ["list"]


def run(args: List | Name | Delete | Restore | Purge, out: Output) -> dict[str, Any]:
    """Read or change the list of runs."""
    workspace = Workspace(args.workspace)
    if isinstance(args, Name):
        found = workspace.run(args.run)
        NoteBook(workspace.path).write(run_subject(found.id), label=args.name)
        out.say(f"{found.id}: {args.name or '(no name)'}")
        return {"run": found.id, "name": args.name}
    if isinstance(args, Delete):
        for run_id in args.run:
            workspace.run(run_id)  # all of them are there before the first goes
        for run_id in args.run:
            put_away(workspace, run_id)
        out.say(f"{len(args.run)} deleted; `attlas runs restore` has them back, `attlas runs purge` frees the disk")
        return {"deleted": list(args.run)}
    if isinstance(args, Restore):
        for run_id in args.run:
            bring_back(workspace, run_id)
        out.say(f"{len(args.run)} back in {workspace.path}")
        return {"restored": list(args.run)}
    if isinstance(args, Purge):
        n = empty_trash(workspace)
        out.say(f"{n} deleted runs are gone for good")
        return {"purged": n}
    return _list(args, workspace, out)


def _list(args: List, workspace: Workspace, out: Output) -> dict[str, Any]:
    runs = [away.run for away in runs_away(workspace)] if args.away else workspace.runs()
    runs = [run for run in runs if args.kind in ("", run.kind)]
    names = {note.subject: note.label for note in NoteBook(workspace.path).all("run")}
    rows = [
        {
            "run": run.id,
            "name": names.get(run_subject(run.id), ""),
            "kind": run.kind,
            "model": run.model.name,
            "data": run.data.name if run.data else "",
            "created": run.created[:16].replace("T", " "),
            "bytes": run.n_bytes,
        }
        for run in runs
    ]
    shown = [(*list(row.values())[:-1], f"{run.n_bytes / 1e6:.1f}") for row, run in zip(rows, runs, strict=True)]
    out.table(
        f"{len(rows)} {'deleted ' if args.away else ''}runs of {workspace.path}",
        ["run", "name", "kind", "model", "data", "created (UTC)", "MB"],
        shown,
    )
    return {"runs": rows}
