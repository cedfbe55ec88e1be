"""`attlas export html`: heads or features of a run, or a page, as one file that needs no server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output
from attlas.dashboard.as_file import save_page
from attlas.dashboard.pages.features.offline import save_features
from attlas.dashboard.pages.heads.offline import save_html
from attlas.dashboard.reader import WorkspaceReader
from attlas.data.disk import check_writable
from attlas.data.workspace import Run
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.cli.export.args import Html


def run(args: Html, out: Output) -> dict[str, Any]:
    """Find the run, write the file, say how large it is."""
    if args.what not in ("heads", "features") and not args.what.startswith("/"):
        raise ConfigError(f"'{args.what}' is nothing to write; give heads, features, or a page such as /feature?id=12")
    if args.to.is_dir():
        raise ConfigError(f"'{args.to}' is a folder; give a file, such as --out {args.what.strip('/')[:8]}.html")
    check_writable(args.to.absolute().parent)
    reader = WorkspaceReader(args.workspace)
    mode = "dark" if args.dark else "light"
    try:
        if args.what.startswith("/"):
            size = save_page(reader, args.what, args.to, mode, args.figures)
            out.say(f"wrote {args.what} to {args.to}: {size / 1e6:.1f} MB")
            return {"page": args.what, "file": str(args.to), "bytes": size}
        found = _run(reader, args)
        if args.what == "heads":
            size = save_html(reader, found, args.to, _heads(args), args.n_sequences, out.track)
        else:
            if args.n_features < 1:
                raise ConfigError(f"--n-features is {args.n_features}; it must be 1 or more")
            size = save_features(reader, found, args.to, args.feature, args.n_features, mode, args.figures, out.track)
    finally:
        reader.jobs.close()
    out.say(f"wrote {found.id} to {args.to}: {size / 1e6:.1f} MB")
    return {"run": found.id, "file": str(args.to), "bytes": size}


def _run(reader: WorkspaceReader, args: Html) -> Run:
    found = reader.workspace.latest(args.what) if args.run is None else reader.workspace.run(args.run)
    if found is None:
        sort = "over heads" if args.what == "heads" else "of features"
        raise ConfigError(f"workspace '{reader.path}' holds no run {sort}; make one (attlas {args.what})")
    return found


def _heads(args: Html) -> list[tuple[int, int]]:
    heads = []
    for name in args.head:
        layer, _, head = name.partition(".")
        if not (layer.isdecimal() and head.isdecimal()):
            raise ConfigError(f"'{name}' is no head; write layer.head, such as 3.0")
        heads.append((int(layer), int(head)))
    if args.n_sequences < 1:
        raise ConfigError(f"--n-sequences is {args.n_sequences}; it must be 1 or more")
    return heads
