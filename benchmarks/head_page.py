"""A head's page and the finder on a run of 1,024 heads: when a reader sees something, and how soon a token lights up its keys.

python benchmarks/head_page.py [--layers 32] [--heads 32] [--sequences 30] [--tokens 512] [--folder DIR] [--json]

It draws a workspace with one run of `heads` (seed 0, in the schemas of `attlas.analyses.heads.tables`), starts `attlas serve`
on it as a process of its own, and opens `/head` and `/heads` in Chromium: each load another head, so that nothing the server
kept of the last helps; the browser keeps scripts after a first load that does not count. Times are the browser's own: from
the start of navigation, and from a pointer's event to the end of the frame that shows other keys.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import main

from attlas.analyses.heads import tables as schemas
from attlas.analyses.heads.rules import TEXT_RULES
from attlas.data.workspace import Ref, Workspace
from dashboard import WORDS, Server

MODEL, DATA = Ref("large", "b" * 16), Ref("drawn", "d" * 16)
MOST_KEYS = 8  # of a query, as `attlas heads` keeps
N_INTERVALS, N_TOP = 5, 10
LOADS, MOVES, REQUESTS = 5, 30, 20
BARS = {"first sequence": 1000, "hover": 50}  # ms
LAYER, HEAD = 17, 5  # the first load that counts
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

# Moments of a load, by performance.now(): when an element is first there, and the end of the frame that drew it.
WATCH = """(() => {
  const seen = (window.seen = {}), after = (tell) => requestAnimationFrame(() => setTimeout(tell));
  const paints = new PerformanceObserver((list) => list.getEntries().forEach((e) => { seen[e.name] = e.startTime; }));
  paints.observe({ type: "paint", buffered: true });
  const wanted = { sequence: ".sequence .cell", page: "#page .content", figure: "#page .js-plotly-plot .main-svg" };
  const look = () => {
    for (const [name, where] of Object.entries(wanted)) if (!(name in seen) && document.querySelector(where)) {
      seen[name] = performance.now();
      after(() => { seen[`${name} drawn`] = performance.now(); });
    }
  };
  new MutationObserver(look).observe(document, { childList: true, subtree: true });
})()"""

# From each pointer's event to the end of the frame in which other cells are keys.
HOVER = """() => {
  const root = document.querySelector(".sequence"), cells = [...root.querySelectorAll(".cell")];
  const keys = () => [...root.querySelectorAll(".cell.to")].map((cell) => cell.dataset.i).join();
  window.moves = [];
  let before = keys();
  root.addEventListener("pointerover", (event) => requestAnimationFrame(() => {
    const now = keys();
    if (now !== before) setTimeout(() => window.moves.push(performance.now() - event.timeStamp));
    before = now;
  }));
  const middle = (box) => [box.x + box.width / 2, box.y + box.height / 2];
  const shown = (cell) => document.elementFromPoint(...middle(cell.getBoundingClientRect())) === cell;
  return cells.filter(shown).map((cell) => middle(cell.getBoundingClientRect()));
}"""


def edges(rng: np.random.Generator, n_sequences: int, n_tokens: int) -> dict[str, pa.Array]:
    """Columns query, key and weight of one head's sequences: 1 to 8 keys of each query, more of them near it."""
    asked = rng.integers(1, MOST_KEYS + 1, n_sequences * n_tokens)
    row = np.repeat(np.arange(n_sequences * n_tokens), asked)
    back = np.minimum(rng.geometric(0.05, len(row)) - 1, row % n_tokens)
    pairs = np.unique(row * n_tokens + row % n_tokens - back)  # a query has each key once
    row, key = np.divmod(pairs, n_tokens)
    starts = np.append(np.searchsorted(row, np.arange(n_sequences) * n_tokens), len(row)).astype(np.int32)
    values = {
        "query": (row % n_tokens).astype(np.int32),
        "key": key.astype(np.int32),
        "weight": rng.uniform(0.005, 1 / MOST_KEYS, len(row)).astype(np.float32),
    }
    return {name: pa.ListArray.from_arrays(pa.array(starts), pa.array(column)) for name, column in values.items()}


def sequences(rng: np.random.Generator, layers: int, heads: int, n_sequences: int, n_tokens: int) -> pa.Table:
    """Table head_sequences: every head has the arrays of one, which are held once."""
    n_top = min(N_TOP, n_sequences)
    rest = np.arange(n_sequences - n_top)
    interval = np.append(np.full(n_top, N_INTERVALS - 1), rest % (N_INTERVALS - 1))
    shared: dict[str, Any] = {
        "by": pa.array(["weight"] * n_sequences),
        "interval": interval.astype(np.int16),
        "rank": np.append(np.arange(n_top), rest // (N_INTERVALS - 1)).astype(np.int16),
        "sequence": np.arange(n_sequences, dtype=np.int32),
        "strength": np.linspace(0.9, 0.1, n_sequences),
        **edges(rng, n_sequences, n_tokens),
    }
    schema = schemas.HEAD_SEQUENCES.arrow
    one = {name: pa.array(column) for name, column in shared.items()}

    def of(layer: int, head: int) -> pa.Table:
        place = {n: pa.array(np.full(n_sequences, at, np.int16)) for n, at in (("layer", layer), ("head", head))}
        return pa.table([(place | one)[name] for name in schema.names], schema=schema)

    return pa.concat_tables(of(layer, head) for layer, head in np.ndindex(layers, heads))


def write(folder: Path, layers: int, heads: int, n_sequences: int, n_tokens: int) -> str:
    """The run; its id."""
    rng = np.random.default_rng(0)
    n, rules = layers * heads, list(TEXT_RULES)
    at = {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
    scores = {score.name: rng.random(n) for score in schemas.SCORES}
    share = rng.dirichlet(np.ones(len(rules)), n).T.ravel()
    again = {name: np.tile(column, len(rules)) for name, column in at.items()}
    account = {name: share for name in schemas.HEAD_ACCOUNT.arrow.names if name.startswith("share")}
    account |= {"rule": np.repeat(rules, n).tolist(), "low": share * 0.9, "high": share * 1.1}
    every = {name: np.tile(column, len(scores)) for name, column in at.items()}
    value = np.concatenate(list(scores.values()))
    every |= {"of": np.repeat(list(scores), n).tolist(), "value": value, "low": value - 0.01, "high": value + 0.01}
    parts = rng.integers(0, 10, (n, schemas.N_PARTS)).tolist()
    words = [[WORDS[i] for i in row] for row in rng.integers(0, len(WORDS), (n_sequences, n_tokens)).tolist()]
    texts = {"sequence": np.arange(n_sequences), "tokens": words}
    columns = {"heads": {**at, **scores, "n_queries": np.full(n, 10**6)}, "head_intervals": every}
    columns |= {"head_account": again | account, "head_texts": texts}
    columns["head_histograms"] = at | {"n_by_activation": parts}
    tables = {schema.name: schema.table(columns[schema.name]) for schema in schemas.SCHEMAS if schema.name in columns}
    tables["head_sequences"] = sequences(rng, layers, heads, n_sequences, n_tokens)
    with Workspace(folder).begin("heads", model=MODEL, data=DATA, config={"n_heads": n}, seed=0) as run:
        for name, table in tables.items():
            run.table(name, table)
        run.summary = {"n_sequences": 10**4, "n_queries": 10**6, "n_heads": n, "unexplained": 0.1}
    return run.record.id


def load(context: Any, url: str, last: str) -> tuple[Any, dict[str, float]]:
    """Open a page; it and the moments of its load in milliseconds, when `last` is there."""
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(url, wait_until="commit")
    page.wait_for_function("(last) => last in window.seen && 'first-contentful-paint' in window.seen", arg=last)
    return page, page.evaluate("window.seen")


def hovers(page: Any, n: int = MOVES) -> list[float]:
    """Milliseconds of pointer moves over tokens of the first sequence, no two after each other side by side."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(1000)  # the rest of the page has come
    places = page.evaluate(HOVER)
    for i in range(n):
        page.mouse.move(*places[(37 * (i + 1)) % len(places)])
        page.wait_for_timeout(80)
    found: list[float] = page.evaluate("window.moves")
    return found


def browse(url: str, layers: int, heads: int) -> dict[str, Any]:
    """Moments of loads of both pages, and hovers."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    moments: dict[str, list[dict[str, float]]] = {"head": [], "heads": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        for i in range(LOADS + 1):
            where = f"layer={LAYER % layers}&head={(HEAD + i - 1) % heads}"
            page, seen = load(context, f"{url}/head?model={MODEL.name}&{where}", "page drawn")
            moments["head"].append(seen)
            moves = hovers(page) if i == LOADS else []
            page.close()
            page, seen = load(context, f"{url}/heads?model={MODEL.name}", "figure drawn")
            moments["heads"].append(seen)
            page.close()
        browser.close()
    named = {
        ("head", "first paint"): "first-contentful-paint",
        ("head", "first sequence"): "sequence drawn",
        ("head", "whole page"): "page drawn",
        ("heads", "first paint"): "first-contentful-paint",
        ("heads", "figure"): "figure drawn",
    }
    loads = [(page, name, sorted(seen[key] for seen in moments[page][1:])) for (page, name), key in named.items()]
    rows = [{"page": p, "of": name, "ms": statistics.median(t), "low": t[0], "high": t[-1]} for p, name, t in loads]
    order = sorted(moves)
    p95 = order[int(0.95 * (len(order) - 1))]
    return {"loads": rows, "hover": {"n": len(order), "median_ms": statistics.median(order), "p95_ms": p95}}


def requests(server: Server, run: str, layers: int, heads: int) -> list[dict[str, Any]]:
    """Processor and wall time of what a head's page asks for, each request of another head."""
    paths = {
        "document": "/head?model=large&layer={}&head={}",
        "sequences": f"/api/head-sequences?run={run}&layer={{}}&head={{}}&by=weight&limit=3",
        "head": "/api/head?model=large&layer={}&head={}",
        "heads": "/api/heads?model=large&offset={}{}",
    }
    rows = []
    for n, (name, path) in enumerate(paths.items()):
        places = [divmod(7919 * (i + n * REQUESTS) % (layers * heads), heads) for i in range(REQUESTS + 1)]
        server.get(path.format(*places.pop()))
        before, start = server.cpu_ms(), time.perf_counter()
        n_bytes = [len(server.get(path.format(*place))) for place in places]
        took = {"wall_ms": 1000 * (time.perf_counter() - start), "cpu_ms": server.cpu_ms() - before}
        rows.append({"request": name, **{k: v / REQUESTS for k, v in took.items()}, "kb": max(n_bytes) / 1000})
    return rows


def run() -> dict[str, Any]:
    """Write, serve, look, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 32), ("heads", 32), ("sequences", 30), ("tokens", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="keep the workspace here, and take it when it is there")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, start = args.folder or Path(temporary) / "workspace", time.perf_counter()
        if not (folder / "manifest.json").exists():
            write(folder, args.layers, args.heads, args.sequences, args.tokens)
        written, name = time.perf_counter() - start, Workspace(folder).runs("heads")[0].id
        with Server(folder) as server:
            load_before = os.getloadavg()[0]
            found = browse(server.url, args.layers, args.heads)
            found["requests"] = requests(server, name, args.layers, args.heads)
            found |= {"written_s": written, "load": [load_before, os.getloadavg()[0]]}
            found["resident_mb"] = server.resident_mb()
    tell = [f"{args.layers * args.heads:,} heads × {args.sequences} × {args.tokens} tokens, written in {written:.0f} s"]
    tell.append("load average {:.1f} before, {:.1f} after".format(*found["load"]))
    tell += ["/{page:6} {of:15} {ms:7.0f} ms ({low:.0f}–{high:.0f})".format(**row) for row in found["loads"]]
    hover = "hover: median {median_ms:.0f} ms, p95 {p95_ms:.0f} ms, of {n} moves"
    tell.append(hover.format(**found["hover"]))
    line = "{request:10} processor {cpu_ms:6.1f} ms, wall {wall_ms:6.1f} ms, {kb:.0f} kB"
    tell += [line.format(**row) for row in found["requests"]]
    tell.append("bars: first sequence {first sequence} ms, hover {hover} ms".format(**BARS))
    print("\n".join(tell), file=sys.stderr)
    return found


if __name__ == "__main__":
    main(run)
