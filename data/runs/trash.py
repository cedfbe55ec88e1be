"""Runs that were deleted and can be had back: the manifest lists them apart, their folders stay until the trash is emptied."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attlas.data.runs.folders import delete, folder_of
from attlas.data.runs.record import Run
from attlas.errors import WorkspaceError

if TYPE_CHECKING:
    from attlas.data.workspace import Workspace


@dataclass(frozen=True)
class AwayRun:
    """A run that was put away.

    Attributes:
        run: as it was.
        since: when, UTC, ISO 8601.
    """

    run: Run
    since: str


def put_away(workspace: Workspace, run_id: str) -> None:
    """Take a run off the list; its files stay. One step of the manifest: a crash leaves it there or away.

    Raises:
        WorkspaceError: there is no such run.
        StorageError: the disk refuses.

    Example:
        >>> from attlas.data.runs.trash import bring_back, put_away, runs_away
        >>> from attlas.data.workspace import Ref, Workspace
        >>> workspace = Workspace(folder / "away")
        >>> with workspace.begin("entropy", model=Ref("gpt2-mini", "0" * 16)) as writer:
        ...     writer.summary["mean"] = 1.0
        >>> put_away(workspace, writer.id)
        >>> len(workspace.runs()), [away.run.id == writer.id for away in runs_away(workspace)]
        (0, [True])
        >>> bring_back(workspace, writer.id).summary
        {'mean': 1.0}
    """
    with workspace.locked() as manifest:
        mine = [e for e in manifest["runs"] if isinstance(e, dict) and e.get("id") == run_id]
        if not mine:
            raise WorkspaceError(f"workspace '{workspace.path}' has no run '{run_id}'")
        manifest["runs"] = [e for e in manifest["runs"] if e not in mine]
        since = datetime.now(UTC).isoformat(timespec="seconds")
        manifest["away"] = [*_away(manifest), *({**e, "away_since": since} for e in mine)]


def bring_back(workspace: Workspace, run_id: str) -> Run:
    """Put the last one of that id back on the list.

    Raises:
        WorkspaceError: no run of that id was put away, or one with its id was made since.
    """
    with workspace.locked() as manifest:
        mine = [e for e in _away(manifest) if e.get("id") == run_id]
        if not mine:
            raise WorkspaceError(f"no run '{run_id}' was put away in workspace '{workspace.path}'")
        if any(isinstance(e, dict) and e.get("id") == run_id for e in manifest["runs"]):
            raise WorkspaceError(f"run '{run_id}' was made again since; delete that one first")
        entry = {name: value for name, value in mine[-1].items() if name != "away_since"}
        manifest["away"] = [e for e in _away(manifest) if e is not mine[-1]]
        manifest["runs"] = [*manifest["runs"], entry]
    return Run.from_json(entry)


def runs_away(workspace: Workspace) -> list[AwayRun]:
    """What was put away and is still on the disk, the last first."""
    found = []
    for entry in reversed(_away(workspace.manifest())):
        with contextlib.suppress(WorkspaceError):
            plain = {name: value for name, value in entry.items() if name != "away_since"}
            found.append(AwayRun(Run.from_json(plain), str(entry.get("away_since", ""))))
    return found


def empty_trash(workspace: Workspace) -> int:
    """Delete the folders of all runs that were put away; how many. They cannot be had back.

    Raises:
        StorageError: the disk refuses.
    """
    with workspace.locked() as manifest:
        names = {folder_of(e) for e in _away(manifest)} - {folder_of(e) for e in manifest["runs"]} - {""}
        n = len(_away(manifest))
        manifest["away"] = []
    for name in names:
        with contextlib.suppress(OSError):
            delete(workspace.path / "runs" / name)
    return n


def _away(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    away = manifest.get("away")
    return [e for e in away if isinstance(e, dict)] if isinstance(away, list) else []
