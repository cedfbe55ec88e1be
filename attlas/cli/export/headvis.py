"""`attlas export headvis`: a run over heads as HeadVis's data tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.heads.headvis import save_headvis
from attlas.cli.common import Output
from attlas.cli.export.folder import check_folder
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.cli.export.args import Headvis


def run(args: Headvis, out: Output) -> dict[str, Any]:
    """Find the run, write the tree."""
    workspace = Workspace(args.workspace)  # read only
    check_folder(args.to)
    found = workspace.latest("heads") if args.run is None else workspace.run(args.run)
    if found is None:
        raise ConfigError(f"workspace '{workspace.path}' holds no run over heads; make one (attlas heads)")
    files = save_headvis(workspace, found, args.to, out.track)
    out.say(f"wrote {len(files)} files of {found.id} to {args.to}")
    return {"run": found.id, "folder": str(args.to), "files": [str(path) for path in files]}
