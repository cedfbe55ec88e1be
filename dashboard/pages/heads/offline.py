"""A run over heads as one HTML file that needs no server and no network: finder, accounts, sequences under the pointer.

The file holds the numbers of all heads as JSON, and the sequences of each as compressed JSON that the browser opens when
its head is looked at; `assets/gallery.js` draws them as it does on the pages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attlas.analyses.common.columns import Head
from attlas.dashboard.as_file import one_file, packed
from attlas.dashboard.pages.heads import sequences
from attlas.dashboard.pages.heads.numbers import all_numbers
from attlas.dashboard.reader import Row, WorkspaceReader, clean
from attlas.data.files import write_text_atomic
from attlas.data.progress import Track, no_track
from attlas.data.workspace import Run
from attlas.errors import ConfigError


def save_html(
    reader: WorkspaceReader,
    run: Run,
    path: Path,
    heads: Sequence[Head] = (),
    n_sequences: int = 12,
    track: Track = no_track,
) -> int:
    """Write heads of a run of `heads`, measured or imported, as one file.

    Args:
        heads: those whose sequences it holds; all when empty. The finder has all numbers of these.
        n_sequences: how many of each list of a head (by weight, by norm, by unexplained mass) it holds, the first ones.

    Raises:
        ConfigError: a run of another kind, or a head that it lacks.

    Returns: bytes written.
    """
    if run.kind != "heads":
        raise ConfigError(f"{run.id} is a run of {run.kind}; give one of heads (attlas heads)")
    found = all_numbers(reader, run.model.name, run)
    missing = [f"{layer}.{head}" for layer, head in heads if (layer, head) not in found.rows]
    if missing:
        raise ConfigError(f"{run.id} has no head {missing[0]}; it has {len(found.rows)}, from 0.0 on")
    places = list(heads) or list(found.rows)
    blocks = []
    texts: dict[int, Row] = {}
    for layer, head in track(places, "heads"):
        lists = {by: _kept(reader, run, (layer, head), by, n_sequences, texts) for by in sequences.BY}
        blocks.append(_block(f"head-{layer}-{head}", lists))
    accounts: dict[str, list[Row]] = {}
    for row in reader.rows(run, "head_account", limit=1_000_000):
        if (row["layer"], row["head"]) in places:
            accounts.setdefault(f"{row['layer']}.{row['head']}", []).append(row)
    told = {
        "model": run.model.name,
        "run": run.id,
        "data": run.data.name if run.data else "",
        "version": run.attlas_version,
        "summary": {k: v for k, v in run.summary.items() if isinstance(v, (int, float, str))},
        "grid": run.summary.get("grid"),
        "n_prefix": run.summary.get("n_prefix", 0),
        "scale": sequences.SCALE,
        "by": sequences.BY,
        "numbers": [{**vars(number), "run": None} for number in found.numbers.values()],
        "heads": [found.rows[place] for place in places],
        "accounts": accounts,
        "help": sequences.HELP_IMAGES if run.summary.get("grid") else sequences.HELP,
    }
    write_text_atomic(path, _document(run, clean(told), [*blocks, _block("texts", texts)]))
    return path.stat().st_size


def _kept(reader: WorkspaceReader, run: Run, at: Head, by: str, limit: int, texts: dict[int, Row]) -> Row:
    """The first rows of one list of a head; tokens and pictures, which heads share, go to `texts`."""
    params = {"run": run.id, "layer": str(at[0]), "head": str(at[1]), "by": by, "limit": str(limit)}
    found = sequences.data(reader, params)
    rows = [{**row} for row in found["sequences"]]
    for row in rows:
        shared = {name: row.pop(name) for name in ("tokens", "picture") if name in row}
        texts.setdefault(row["sequence"], shared)
    return {"sequences": rows, "n_intervals": found.get("n_intervals", 1)}


def _block(name: str, content: Any) -> str:
    """JSON that the browser opens when it is looked at."""
    return packed(json.dumps(clean(content), separators=(",", ":"), ensure_ascii=False), id=name)


def _document(run: Run, told: Row, blocks: list[str]) -> str:
    numbers = json.dumps(told, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = [
        '<main class="content" id="offline"></main>',
        f'<script type="application/json" id="numbers">{numbers}</script>',
        *blocks,
    ]
    return one_file(
        f"Heads of {run.model.name}", parts, ("attlas.css", "gallery.css"), ("offline.heads.js", "gallery.js")
    )
