"""A loopback server that speaks chat completions, answering as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: str, total: int | None = 7) -> bytes:
    usage = {} if total is None else {"usage": {"total_tokens": total}}
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], **usage}).encode()


@dataclass
class Served:
    """What came in, and what goes out.

    Attributes:
        answers: (status, headers, body, seconds before it) of the next requests; when they run out, `usual` answers.
    """

    usual: Callable[[dict[str, Any]], str] = lambda body: "LABEL: something"
    answers: list[tuple[int, dict[str, str], bytes, float]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Answers on a free port of 127.0.0.1 meanwhile."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.bodies.append(body)
            served.headers.append(dict(self.headers))
            served.paths.append(self.path)
            status, headers, answer, delay = (
                served.answers.pop(0) if served.answers else (200, {}, completion(served.usual(body)), 0.0)
            )
            time.sleep(delay)
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except OSError:  # the client has gone
                pass

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
