"""`attlas serve`: the app behind Waitress, a server that is made to be left running."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from waitress import create_server

from attlas.dashboard.app import create_app
from attlas.dashboard.guard import BODY_BYTES, LOCAL, TOKEN, new_token
from attlas.errors import ConfigError

THREADS = 16


def free_port(host: str, port: int) -> int:
    """The port itself when it can be bound (0: any free one).

    Raises:
        ConfigError: it is taken, or not allowed.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose another --port, or 0") from error
        return int(probe.getsockname()[1])


def serve(
    workspace: str | Path,
    port: int = 8050,
    host: str = "127.0.0.1",
    *,
    models: Mapping[str, str] | None = None,
    ready: Callable[[str], Any] = print,
) -> None:
    """Serve a workspace until interrupted; `ready` is called with the link first; the rest as `create_app`.

    On any address but this machine's own the link holds a token, and nothing is given without it.

    Raises:
        ConfigError: the port is taken.
        WorkspaceError: the folder is not a workspace.
    """
    token = None if host in LOCAL else new_token()
    app = create_app(workspace, models, host, token)
    logging.getLogger("waitress").setLevel(logging.ERROR)
    server = create_server(
        app.server,
        host=host,
        port=free_port(host, port),
        threads=THREADS,
        max_request_body_size=BODY_BYTES,
        clear_untrusted_proxy_headers=True,
        ident=None,
    )
    ready(f"http://{host}:{server.effective_port}/" + (f"?{TOKEN}={token}" if token else ""))
    try:
        server.run()
    finally:
        server.close()
        app.server.extensions["attlas.jobs"].close()
