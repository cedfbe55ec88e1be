"""`attlas export sae`: a sparse autoencoder, or its feature dashboards, in another library's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output
from attlas.cli.export.folder import check_folder
from attlas.cli.inputs import find_sae
from attlas.data.workspace import Run, Workspace
from attlas.errors import ConfigError
from attlas.saes.formats import FORMATS, load_sae, neuronpedia

if TYPE_CHECKING:
    from attlas.cli.export.args import Sae


def run(args: Sae, out: Output) -> dict[str, Any]:
    """Find the autoencoder, write it."""
    workspace = Workspace(args.workspace)  # read only
    check_folder(args.to)
    source, parent = find_sae(workspace, args.sae)
    sae = load_sae(source)
    if args.format == "neuronpedia-json":
        files = _neuronpedia(workspace, parent, sae.cfg, args.to)
    else:
        FORMATS[args.format].save(sae, args.to)
        files = sorted(args.to.iterdir())
    out.say(f"wrote {len(files)} files to {args.to}: {', '.join(path.name for path in files[:4])}")
    return {"sae": source, "to": args.format, "folder": str(args.to), "files": [str(path) for path in files]}


def _neuronpedia(workspace: Workspace, parent: Run | None, cfg: Any, folder: Path) -> list[Path]:
    found = [r for r in workspace.runs("features") if parent is not None and parent.id in r.parents]
    if not found:
        raise ConfigError("the workspace has no features run of this SAE; run attlas features first")
    names = [name for name in ("features", "examples", "logits", "histogram") if name in found[0].tables]
    return neuronpedia.save({name: workspace.read_table(found[0], name) for name in names}, cfg, folder)
