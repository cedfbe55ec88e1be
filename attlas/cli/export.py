"""`attlas export`: a sparse autoencoder, or its feature dashboards, in another library's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from attlas.cli.common import Output
from attlas.cli.inputs import find_sae
from attlas.cli.options import OutArgs
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


def _neuronpedia(workspace: Workspace, parent: Run | None, cfg: Any, folder: Path) -> list[Path]:
    from attlas.saes.formats import neuronpedia

    found = [r for r in workspace.runs("features") if parent is not None and parent.id in r.parents]
    if not found:
        raise ConfigError("the workspace has no features run of this SAE; run attlas features first")
    names = [name for name in ("features", "examples", "logits", "histogram") if name in found[0].tables]
    return neuronpedia.save({name: workspace.read_table(found[0], name) for name in names}, cfg, folder)
