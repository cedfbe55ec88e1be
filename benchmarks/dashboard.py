"""The dashboard on a large workspace: what a request costs the server, what a search takes, how many readers it bears.

python benchmarks/dashboard.py [--features 1000000] [--examples 10] [--clients 50] [--seconds 20] [--folder DIR] [--json]

It writes a workspace of that many features (drawn, seed 0) with that many examples each, starts `attlas serve` on it as a
process of its own, and asks it over HTTP. Processor time is the server's, from the system; a bar stands beside each number.
Peers serve other pages from other stores (Neuronpedia from Postgres, SAEDashboard as files), so there is no ratio here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import main

from attlas.data.workspace import Ref, Workspace

MODEL, DATA = Ref("large", "b" * 16), Ref("drawn", "d" * 16)
WORDS = [
    f" {stem}{end}"
    for stem in ["the", "of", "walk", "run", "cat", "blue", "import", "class", "neur", "entropy", "zeta"]
    for end in ("", "s", "ed")
]
CONTEXT = 24  # tokens of an example
ROUNDS = 20  # requests of each sort
BARS = {
    "page": 40,
    "sort": 40,
    "filter": 40,
    "#id": 40,
    "feature page": 40,
    "text search": 100,
    "deep offset": 100,
}  # ms


def write(folder: Path, n: int, per_feature: int) -> None:
    """An autoencoder's run and one of its features, with the tables that `attlas features` writes."""
    rng = np.random.default_rng(0)
    workspace = Workspace(folder)
    with workspace.begin("sae", model=MODEL, data=DATA, config={"d_sae": n}, seed=0) as run:
        run.summary = {"arch": "topk", "d_in": 768, "d_sae": n, "k": 32, "hook": "blocks.3.attn.hook_z"}
    sae = run.record.id
    density = np.where(rng.random(n) < 0.05, 0.0, np.clip(10 ** rng.normal(-3, 0.8, n), 0, 1))

    def phrases(k: int) -> list[str]:
        return [" | ".join(WORDS[i] for i in row) for row in rng.integers(0, len(WORDS), (n, k)).tolist()]

    features = {
        "feature": pa.array(np.arange(n), pa.int32()),
        "density": density,
        "n_active": (density * 1e7).astype(np.int64),
        "mean_act": rng.gamma(2, 0.7, n),
        "max_act": rng.gamma(3, 2, n),
        "top_head": pa.array(rng.integers(0, 12, n), pa.int16()),
        "top_head_share": rng.random(n),
        "promoted": phrases(8),
        "top_tokens": phrases(5),
        "family": np.array(["induction", "local", "unassigned"])[rng.integers(0, 3, n)],
    }
    with workspace.begin("features", model=MODEL, data=DATA, config={"n": n}, seed=0, parents=(sae,)) as run:
        run.table("features", pa.table(features))
        run.table("examples", _examples(rng, n, per_feature))
        run.summary = {"n_features": n, "n_tokens": 10**9, "dead_fraction": float((density == 0).mean())}


def _examples(rng: np.random.Generator, n: int, per_feature: int) -> pa.Table:
    """Rows by feature; a thousand contexts are drawn, and repeated."""
    rows, kinds = n * per_feature, 1000
    tokens = pa.array([[WORDS[i] for i in row] for row in rng.integers(0, len(WORDS), (kinds, CONTEXT))])
    activations = pa.array(list(np.maximum(rng.normal(size=(kinds, CONTEXT)), 0).astype(np.float32)))
    which = pa.array(rng.integers(0, kinds, rows))
    return pa.table(
        {
            "feature": pa.array(np.repeat(np.arange(n), per_feature), pa.int32()),
            "stratum": pa.array(["top"] * rows).dictionary_encode(),
            "rank": pa.array(np.tile(np.arange(per_feature), n), pa.int32()),
            "sequence": pa.array(rng.integers(0, 10**6, rows), pa.int32()),
            "position": pa.array(np.full(rows, CONTEXT - 1), pa.int32()),
            "context_start": pa.array(np.zeros(rows), pa.int32()),
            "activation": rng.gamma(3, 2, rows).astype(np.float32),
            "tokens": tokens.take(which),
            "activations": activations.take(which),
        }
    )


class Server:
    """`attlas serve` as a process; its processor time and resident memory from /proc."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "attlas", "serve", "--workspace", str(folder), "--port", "0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"].rstrip("/")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            return answer.read()

    def cpu_ms(self) -> float:
        parts = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return 1000 * (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096 / 1e6

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)


def _paths(n: int) -> dict[str, Callable[[int], str]]:
    """Sort of request → its i-th address; no two are alike, so that nothing is answered from memory of the last."""
    query: Callable[..., str] = lambda **q: "/api/features?" + urllib.parse.urlencode(q)  # noqa: E731
    return {
        "page": lambda i: query(offset=100 * i),
        "sort": lambda i: query(sort=("density", "-density", "-mean_act", "top_head")[i % 4], offset=100 * i),
        "filter": lambda i: query(head=i % 12, family="local", min=0.01 * (i + 1)),
        "#id": lambda i: query(q=f"#{(i * 7919) % n}"),
        "feature page": lambda i: f"/api/feature?id={(i * 7919) % n}",
        "text search": lambda i: query(q=f"{WORDS[i % len(WORDS)].strip()} | ", offset=i),
        "deep offset": lambda i: query(sort="-max_act", offset=n - 200 - i),
    }


def requests(server: Server, n: int) -> list[dict[str, object]]:
    """Wall and processor milliseconds of a request, by sort."""
    rows = []
    for sort, path in _paths(n).items():
        server.get(path(ROUNDS + 1))
        wall, cpu = [], []
        for i in range(ROUNDS):
            before, start = server.cpu_ms(), time.perf_counter()
            server.get(path(i))
            wall.append(1000 * (time.perf_counter() - start))
            cpu.append(server.cpu_ms() - before)
        worst = sorted(cpu)[-1 - ROUNDS // 20]
        rows.append(
            {
                "request": sort,
                "wall_ms": statistics.median(wall),
                "cpu_ms": statistics.mean(cpu),
                "cpu_p95_ms": worst,
                "bar_ms": BARS[sort],
            }
        )
    return rows


def crowd(server: Server, n: int, clients: int, seconds: float) -> dict[str, object]:
    """Clients that ask one thing after another, without a pause."""
    until, took, failed = time.monotonic() + seconds, [], []
    paths = list(_paths(n).values())

    def client(number: int) -> None:
        i = number
        while time.monotonic() < until:
            start = time.perf_counter()
            try:
                server.get(paths[i % len(paths)](i))
                took.append(time.perf_counter() - start)
            except OSError as error:
                failed.append(str(error))
            i += clients

    threads = [threading.Thread(target=client, args=(k,)) for k in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    order = sorted(took)
    return {
        "clients": clients,
        "requests": len(took),
        "errors": len(failed),
        "p50_ms": 1000 * order[len(order) // 2] if order else None,
        "p95_ms": 1000 * order[int(0.95 * len(order))] if order else None,
    }


def run() -> dict:
    """Write, serve, ask, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--examples", type=int, default=10, help="a feature")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, help="keep the workspace here, and take it when it is there")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "workspace"
        if not (folder / "manifest.json").exists():
            write(folder, args.features, args.examples)
        with Server(folder) as server:
            start = time.perf_counter()
            server.get("/api/features")
            first = time.perf_counter() - start
            rows = requests(server, args.features)
            many = crowd(server, args.features, args.clients, args.seconds)
            found = {
                "features": args.features,
                "first_s": first,
                "rows": rows,
                "crowd": many,
                "resident_mb": server.resident_mb(),
            }
    print(f"\n{args.features:,} features, {args.features * args.examples:,} examples", file=sys.stderr)
    print(f"  first request {first:.2f} s (bar 1 s), resident {found['resident_mb']:.0f} MB (bar 600)", file=sys.stderr)
    for row in rows:
        print(
            "  {request:14} wall {wall_ms:7.1f} ms  cpu {cpu_ms:6.1f} ms, p95 {cpu_p95_ms:6.1f} (bar {bar_ms})".format(
                **row
            ),
            file=sys.stderr,
        )
    print(
        "  {clients} clients: {requests} requests, {errors} errors, p50 {p50_ms:.0f} ms, p95 {p95_ms:.0f} ms".format(
            **many
        ),
        file=sys.stderr,
    )
    return found


if __name__ == "__main__":
    main(run)
