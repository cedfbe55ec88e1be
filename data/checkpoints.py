"""Checkpoints of one training, in the order of their steps."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from attlas.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder and the step it was written at."""

    step: int
    folder: Path


def find_checkpoints(folder: str | Path, final_step: int | None = None) -> tuple[Checkpoint, ...]:
    """Checkpoints below a folder, by step.

    A checkpoint is a subfolder with config.json whose name ends in a number ("checkpoint-500", "step-02000"). When the
    folder or its parent is a model itself, it is the last one; its step is `final_step`, or what its
    trainer_state.json or README says ("8,847 steps"), else it is left out.

    Raises:
        CheckpointError: no such folder, or fewer than two checkpoints in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise CheckpointError(f"'{root}' is not a folder; give one that holds checkpoints such as checkpoint-500/")
    found = {}
    for path in sorted(root.iterdir()):
        number = re.search(r"(\d+)$", path.name)
        if number and (path / "config.json").is_file():
            found[int(number.group(1))] = Checkpoint(int(number.group(1)), path)
    for path in (root, root.resolve().parent):
        if (path / "config.json").is_file():
            step = final_step if final_step is not None else _step_of(path)
            if step is not None:
                found[step] = Checkpoint(step, path)
            break
    if len(found) < 2:
        raise CheckpointError(
            f"'{root}' holds {len(found)} checkpoints; a timeline needs two or more folders named like checkpoint-500/"
        )
    return tuple(found[step] for step in sorted(found))


def _step_of(folder: Path) -> int | None:
    state = folder / "trainer_state.json"
    if state.is_file():
        step = json.loads(state.read_text(encoding="utf-8")).get("global_step")
        return None if step is None else int(step)
    card = folder / "README.md"
    if card.is_file():
        said = re.search(r"\b(\d[\d,]*) steps\b", card.read_text(encoding="utf-8"))
        return int(said.group(1).replace(",", "")) if said else None
    return None
