"""`attlas export`: a sparse autoencoder, or its feature dashboards, in another library's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from attlas.cli.common import OutArgs, Output
from attlas.data.disk import check_writable
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.data.workspace import Run, Workspace


@dataclass(frozen=True)
class Args(OutArgs):
    """Write a sparse autoencoder for SAELens, sparsify or dictionary_learning, or its features for Neuronpedia.

    For example:

        attlas export --sae sae-gpt2-mini-0a1b2c3d --to saelens --to-folder exported
    """

    to: Literal["saelens", "sparsify", "dictionary_learning", "original", "neuronpedia-json"] = "saelens"
    """Format; neuronpedia-json needs a features run of the SAE in the workspace (attlas features)."""
    sae: str | None = None
    """A run id of the workspace, a path, or saelens:RELEASE/ID; by default the newest SAE of the workspace."""
    folder: Annotated[Path, tyro.conf.arg(aliases=["-o", "--to-folder"])] = Path("exported")
    """Where to write; must be empty or not there."""


def run(args: Args, out: Output) -> dict[str, Any]:
    from attlas.data.workspace import Workspace
    from attlas.saes.formats import FORMATS, load_sae

    workspace = Workspace(args.workspace)  # read only
    check_writable(args.folder)
    source, parent = find_sae(workspace, args.sae)
    sae = load_sae(source)
    if args.folder.is_file() or (args.folder.is_dir() and any(args.folder.iterdir())):
        raise ConfigError(f"'{args.folder}' is not an empty folder; give another with --folder")
    if args.to == "neuronpedia-json":
        files = _neuronpedia(workspace, parent, sae.cfg, args.folder)
    else:
        FORMATS[args.to].save(sae, args.folder)
        files = sorted(args.folder.iterdir())
    out.say(f"wrote {len(files)} files to {args.folder}: {', '.join(path.name for path in files[:4])}")
    return {"sae": source, "to": args.to, "folder": str(args.folder), "files": [str(path) for path in files]}


def find_sae(workspace: Workspace, name: str | None) -> tuple[str, Run | None]:
    """(path, run) of the SAE a person names: a run id, a path (no run), or nothing for the newest.

    Raises:
        ConfigError: nothing is named and the workspace holds no SAE.
    """
    runs = workspace.runs("sae")
    if name is None:
        if not runs:
            raise ConfigError(f"workspace '{workspace.path}' holds no SAE; train one (attlas train) or give --sae")
        return str(workspace.folder(runs[0])), runs[0]
    for run_ in runs:
        if name in (run_.id, str(workspace.folder(run_))):
            return str(workspace.folder(run_)), run_
    return name, None


def model_of(parent: Run | None, typed: str, default: str) -> str:
    """The model that is named, or else the one the autoencoder was trained on.

    Raises:
        ConfigError: that one's folder is not there any more.
    """
    name = str(parent.config.get("model", typed)) if parent is not None and typed == default else typed
    if Path(name).is_absolute() and parent is not None and not Path(name).exists():
        raise ConfigError(f"run '{parent.id}' was made on the model in '{name}', which is not there; give --model")
    return name


def find_saes(workspace: Workspace, name: str | None) -> list[tuple[str, Run | None]]:
    """`find_sae`, but with nothing named every SAE of the newest training, in the order of its hooks.

    Raises: as `find_sae`.
    """
    source, parent = find_sae(workspace, name)
    if name is not None or parent is None:
        return [(source, parent)]
    same = [r for r in workspace.runs("sae") if r.model == parent.model and _training(r) == _training(parent)]
    return [(str(workspace.folder(r)), r) for r in reversed(same)]


def _training(run: Run) -> dict[str, Any]:
    """A training's configuration without the hook: equal for all SAEs of one training."""
    return {key: value for key, value in run.config.items() if key != "hooks"}


def _neuronpedia(workspace: Workspace, parent: Run | None, cfg: Any, folder: Path) -> list[Path]:
    from attlas.saes.formats import neuronpedia

    found = [r for r in workspace.runs("features") if parent is not None and parent.id in r.parents]
    if not found:
        raise ConfigError("the workspace has no features run of this SAE; run attlas features first")
    names = [name for name in ("features", "examples", "logits", "histogram") if name in found[0].tables]
    return neuronpedia.save({name: workspace.read_table(found[0], name) for name in names}, cfg, folder)
