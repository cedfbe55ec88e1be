"""Where an unfinished training lies, and what a person types to go on from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output
from attlas.data.workspace import jsonable
from attlas.saes.training.checkpoint import has_checkpoint

if TYPE_CHECKING:
    from attlas.data.workspace import Workspace


def key(config: Any) -> str:
    """The same configuration gives the same folder, so that --resume finds it."""
    return hashlib.sha256(json.dumps(jsonable(config), sort_keys=True).encode()).hexdigest()[:8]


def go_on(folder: Path, out: Output) -> str:
    """What to type after an interruption."""
    if has_checkpoint(folder):
        return f"go on from the last checkpoint with: {out.command('--resume')}"
    return f"no checkpoint had been written yet (see --checkpoint-every); again: {out.command()}"


def tell_what_resumes(resume: bool, folder: Path, workspace: Workspace, out: Output) -> None:
    """Say so where --resume finds nothing."""
    if resume and not has_checkpoint(folder):
        out.say(f"--resume: no checkpoint of this configuration in {workspace.path}; starting from the first step")
