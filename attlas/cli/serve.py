"""`attlas serve`: the atlas in the browser."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from attlas.cli.common import Output
from attlas.cli.options import OutArgs
from attlas.data.models_catalog import resolve_model


@dataclass(frozen=True)
class Args(OutArgs):
    """Serve a workspace's dashboard on this machine until interrupted (Ctrl-C).

    Nothing is sent anywhere. The page follows the workspace: runs that appear later are shown on the next click. Some
    pages run a model on what you type or drop there: embedded and fetched ones, and those named with --models.

    Example: attlas serve --workspace workspace --port 8050
    """

    port: int = 8050
    """Port; 0 takes any free one."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but 127.0.0.1 lets others read the workspace."""
    models: tuple[str, ...] = ()
    """Folders of further models of this workspace, for pages that run them."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Serve; with --json the address is printed once, as soon as the server listens."""
    from attlas.dashboard.server import serve

    found = [resolve_model(name) for name in args.models]
    models = {model.name: str(model.folder) for model in found}
    address = ""

    def ready(url: str) -> None:
        nonlocal address
        address = url
        if args.json:
            print(json.dumps({"url": url, "workspace": str(args.workspace)}), file=sys.__stdout__, flush=True)
        out.say(f"[bold]{url}[/bold]  (workspace {args.workspace}; Ctrl-C stops)")

    try:
        serve(args.workspace, port=args.port, host=args.host, models=models, ready=ready)
    except KeyboardInterrupt:
        out.say("stopped")
    return {"url": address}
