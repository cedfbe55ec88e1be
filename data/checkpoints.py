"""Checkpoints of one training, in the order of their steps: subfolders, or revisions of a model on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attlas.data.files import cache_dir
from attlas.data.models_catalog import MODEL_FILES
from attlas.data.progress import Track, no_track
from attlas.errors import CheckpointError, nearest


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder and the step it was written at.

    Attributes:
        model, revision: what `find_revisions` was asked for; "" for a folder that has its own name.
    """

    step: int
    folder: Path
    model: str = ""
    revision: str = ""

    @property
    def name(self) -> str:
        """The revision, or the folder's name."""
        return self.revision or self.folder.name

    @property
    def model_name(self) -> str:
        """To record: "EleutherAI/pythia-160m@step1000", or the folder's name."""
        return f"{self.model}@{self.revision}" if self.revision else self.folder.resolve().name


def find_checkpoints(folder: str | Path, final_step: int | None = None) -> tuple[Checkpoint, ...]:
    """Checkpoints below a folder, by step.

    A checkpoint is a subfolder with config.json whose name ends in a number ("checkpoint-500", "step-02000") or has a step
    in it ("step1000-tokens4B"). When the folder or its parent is a model itself, it is the last one; its step is
    `final_step`, or what its trainer_state.json or README says ("8,847 steps"), else it is left out.

    Raises:
        CheckpointError: no such folder, or fewer than two checkpoints in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise CheckpointError(f"'{root}' is not a folder; give one that holds checkpoints such as checkpoint-500/")
    found = {}
    for path in sorted(root.iterdir()):
        number = _step_in(path.name)
        if number is not None and (path / "config.json").is_file():
            found[number] = Checkpoint(number, path)
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


def find_revisions(
    model: str, revisions: Sequence[str], final_step: int | None = None, track: Track = no_track
) -> tuple[Checkpoint, ...]:
    """Revisions of a model, by step: local folders first, then the hub's cache, then the hub.

    Local folders are named by the revision, in a folder of the model's name (`pythia-160m/step1000`) or in
    `$ATTLAS_CACHE/models/MODEL`. All revisions are looked up before one is fetched.

    Args:
        model: a folder, or a hub id such as "EleutherAI/pythia-160m".
        revisions: such as "step1000"; the step is the number in the name.
        final_step: step of a revision without a number, such as "main".

    Raises:
        CheckpointError: fewer than two, one twice or without a step, or one that does not exist (near names are told).
    """
    if len(set(revisions)) < 2 or len(set(revisions)) < len(revisions):
        raise CheckpointError(
            f"a timeline needs two or more revisions, each once; given: {', '.join(revisions) or 'none'}"
        )
    steps = {revision: _step_in(revision, final_step) for revision in revisions}
    if missing := [revision for revision, step in steps.items() if step is None]:
        raise CheckpointError(f"revision '{missing[0]}' has no step in its name; give --final-step")
    local = [folder for folder in (Path(model).expanduser(), cache_dir() / "models" / model) if folder.is_dir()]
    folders = {
        r: path for r in revisions for root in local[::-1] if (path := root / r) and (path / "config.json").is_file()
    }
    absent = [revision for revision in revisions if revision not in folders]
    if absent:
        folders |= _from_hub(model, absent, local, track)
    found = [
        Checkpoint(step, folders[revision], model, revision) for revision, step in steps.items() if step is not None
    ]
    if len({checkpoint.step for checkpoint in found}) < len(found):
        raise CheckpointError(f"two of the revisions {', '.join(revisions)} are of the same step; leave one out")
    return tuple(sorted(found, key=lambda checkpoint: checkpoint.step))


def _from_hub(model: str, absent: Sequence[str], local: Sequence[Path], track: Track) -> dict[str, Path]:
    """Folders of revisions, from the hub's cache or the hub, where all are known to exist before one is fetched."""
    import huggingface_hub as hub

    if Path(model).expanduser().is_dir():
        raise _no_revision(model, absent[0], _named(local), f"folders of '{model}'")
    found: dict[str, Path] = {}
    for revision in absent:
        try:
            folder = Path(hub.snapshot_download(model, revision=revision, local_files_only=True))
        except (OSError, ValueError):  # not cached, or no id of a repository: the hub says more
            continue
        if (folder / "config.json").is_file():
            found[revision] = folder
    still = [revision for revision in absent if revision not in found]
    if not still:
        return found
    try:
        refs = hub.list_repo_refs(model)
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
        if unknown := [revision for revision in still if revision not in known]:
            raise _no_revision(model, unknown[0], known, "the hub")
        for revision in track(still, "fetching revisions"):
            found[revision] = Path(hub.snapshot_download(model, revision=revision, allow_patterns=MODEL_FILES))
    except CheckpointError:
        raise
    except Exception as error:  # offline, not found and gated repositories come in many classes
        here = [*_named(local), *_cached_revisions(model)]
        raise CheckpointError(
            f"revision '{still[0]}' of '{model}' is not here and could not be fetched ({type(error).__name__})"
            + (nearest(still[0], here) or _list(here, "here"))
        ) from error
    return found


def _no_revision(model: str, revision: str, known: Sequence[str], where: str) -> CheckpointError:
    return CheckpointError(f"'{model}' has no revision '{revision}'{nearest(revision, known) or _list(known, where)}")


def _list(known: Sequence[str], where: str) -> str:
    shown = ", ".join(sorted(set(known))[:5]) + (" …" if len(set(known)) > 5 else "")
    return f"; {where}: {shown or 'none'}"


def _named(local: Sequence[Path]) -> list[str]:
    return list(dict.fromkeys(p.name for root in local for p in root.iterdir() if (p / "config.json").is_file()))


def _cached_revisions(model: str) -> list[str]:
    """Names of revisions in the hub's cache."""
    from huggingface_hub import constants

    refs = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "refs"
    return [str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file()] if refs.is_dir() else []


def _step_in(name: str, otherwise: int | None = None) -> int | None:
    """The number after "step", else the one that ends the name."""
    found = re.search(r"step[-_]?(\d+)", name) or re.search(r"(\d+)$", name)
    return int(found.group(1)) if found else otherwise


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
