"""Which checkpoints a verb is asked to measure, and where it keeps what is measured until all is saved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attlas.analyses.common.checkpoints import Opening
from attlas.cli.common import Output
from attlas.data.checkpoints import Checkpoint, find_checkpoints, find_revisions
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.data.workspace import Workspace


def asked_for(
    folder: Path | None, model: str, revisions: Sequence[str], final_step: int | None, out: Output
) -> tuple[Checkpoint, ...]:
    """The checkpoints of a folder, or the revisions of a model.

    Raises:
        ConfigError: neither, or both.
        CheckpointError: as `find_checkpoints` and `find_revisions`.
    """
    if (folder is None) == (not revisions):
        raise ConfigError(
            "name the checkpoints by --checkpoints DIR, a folder of Hugging Face checkpoints, or by --model NAME --revisions …"
        )
    if folder is not None:
        return find_checkpoints(folder, final_step)
    if not model:
        raise ConfigError("--revisions are of a model; give --model")
    return find_revisions(model, revisions, final_step, out.track)


def opening_of(
    verb: str, checkpoints: tuple[Checkpoint, ...], workspace: Workspace, out: Output, device: str, dtype: str
) -> Opening:
    """What is measured is kept in the workspace, in a folder of this command's own, and gone on with."""
    out.how_to_go_on = lambda: f"the same command goes on after the checkpoints that are measured: {out.command()}"
    named = "\n".join((out.command(), *(str(c.folder.resolve()) for c in checkpoints)))
    key = hashlib.sha256(named.encode()).hexdigest()[:16]
    return Opening(device, dtype, workspace.path / ".timeline" / f"{verb}-{key}")
