"""`attlas export html heads`: heads of a run as one file that needs no server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output
from attlas.dashboard.pages.heads.offline import save_html
from attlas.dashboard.reader import WorkspaceReader
from attlas.data.disk import check_writable
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.cli.export.args import Html


def run(args: Html, out: Output) -> dict[str, Any]:
    """Find the run, write the file, say how large it is."""
    heads = []
    for name in args.head:
        layer, _, head = name.partition(".")
        if not (layer.isdecimal() and head.isdecimal()):
            raise ConfigError(f"'{name}' is no head; write layer.head, such as 3.0")
        heads.append((int(layer), int(head)))
    if args.n_sequences < 1:
        raise ConfigError(f"--n-sequences is {args.n_sequences}; it must be 1 or more")
    if args.to.is_dir():
        raise ConfigError(f"'{args.to}' is a folder; give a file, such as --out heads.html")
    check_writable(args.to.absolute().parent)
    reader = WorkspaceReader(args.workspace)
    run = reader.workspace.latest("heads") if args.run is None else reader.workspace.run(args.run)
    if run is None:
        raise ConfigError(f"workspace '{reader.path}' holds no run over heads; make one (attlas heads)")
    size = save_html(reader, run, args.to, heads, args.n_sequences, out.track)
    out.say(f"wrote {run.id} to {args.to}: {size / 1e6:.1f} MB")
    return {"run": run.id, "file": str(args.to), "bytes": size}
