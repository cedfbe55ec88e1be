"""`attlas heads import`: a HeadVis data tree as a run of the workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.heads.headvis_read import load_headvis
from attlas.cli.common import Output, done, open_workspace

if TYPE_CHECKING:
    from attlas.cli.heads.args import Import


def run(args: Import, out: Output) -> dict[str, Any]:
    """Read, save, say what the tree lacks."""
    workspace = open_workspace(args)
    tree = load_headvis(args.tree, out.track)
    for note in tree.notes:
        out.say(note)
    return done(tree.save(workspace), workspace, tree.summary(), out)
