"""Writes a run over heads as HeadVis's data tree (Luger, Kamath et al. 2026), which its interface and Neuronpedia read.

A tree is config.json, scatter_data.json (every number of every head), heads/L0H0.json … (sequences with sparse maps) and
two stubs. Sequences are those chosen by their largest weight, which is how HeadVis ranks them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from attlas.analyses.common.token_mass import token_mass
from attlas.analyses.heads.gallery import PLACES
from attlas.analyses.heads.tables import N_PARTS, SCHEMAS, SCORES
from attlas.data.files import write_text_atomic
from attlas.data.progress import Track, no_track
from attlas.data.runs.record import Run
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError

DISTANCES = (0, *(2**power for power in range(13)))
N_TOKENS = 50  # top tokens of each side
PATTERN = "L{layer}H{head}.json"
ORIGIN = "headvis.json"
"""File of a run that was read from a tree: the tree's config.json, without what is not known here."""
SCORE_NAMES = tuple(f.name for f in SCORES)
_DISPLAY = {
    "has_umap": False,
    "umap_heads": [],
    "custom_plots": [
        {"key": "qk_distance_histogram", "label": "Distance from query to key"},
        {"key": "histogram", "label": "Sequences by activation"},
    ],
    "custom_tables": [
        {"key": "top_query_tokens", "label": "Top query tokens"},
        {"key": "top_key_tokens", "label": "Top key tokens"},
    ],
    "statistics_display": {
        "n_samples": {"label": "Sequences kept", "format": "default"},
        "mean_max_activation": {"label": "Mean activation", "format": "default"},
    },
}


def save_headvis(workspace: Workspace, run: Run, folder: Path, track: Track = no_track) -> list[Path]:
    """Write HeadVis's data tree from a run of `heads`, measured or read from another tree.

    Args:
        folder: made when it is not there. config.json is written last: where it is, the tree is whole.

    Raises:
        ConfigError: a run of another kind, or of images, which HeadVis does not know.

    Returns: the files.

    Example:
        >>> from attlas import Workspace
        >>> from attlas.analyses.heads import HeadsConfig, head_atlas, load_headvis, save_headvis
        >>> workspace = Workspace(folder / "workspace")
        >>> run = head_atlas(model, text, HeadsConfig(n_top=2, n_control=0)).save(workspace, model, text)
        >>> files = save_headvis(workspace, run, folder / "tree")
        >>> len(files) == 4 + model.cfg.n_layers * model.cfg.n_heads
        True
        >>> load_headvis(folder / "tree").model_name
        'gpt2-mini'
    """
    if run.kind != "heads":
        raise ConfigError(f"{run.id} is a run of {run.kind}; give one of heads (attlas heads)")
    missing = [schema.name for schema in SCHEMAS if schema.name not in run.tables]
    if missing:
        raise ConfigError(f"{run.id} lacks the table '{missing[0]}'; run attlas heads again")
    heads = workspace.read_table(run, "heads")
    texts = dict(zip(*_columns(workspace.read_table(run, "head_texts"), "sequence", "tokens"), strict=True))
    if texts and not any(texts.values()):
        raise ConfigError(f"{run.id} is of images, and HeadVis shows text alone; give a run of a language model")
    rows = {(row["layer"], row["head"]): row for row in heads.to_pylist()}
    counts = {
        (row["layer"], row["head"]): row["n_by_activation"]
        for row in workspace.read_table(run, "head_histograms").to_pylist()
    }
    config = _config(workspace, run, heads)
    chosen = _sequences(workspace.read_table(run, "head_sequences"), texts)
    paths = []
    for layer, head in track(config["heads"], "heads"):
        kept = chosen.get((layer, head), [])
        mean = (rows.get((layer, head)) or {}).get("mean_activation")
        name = config["head_data_pattern"].replace("{layer}", str(layer)).replace("{head}", str(head))
        paths.append(_write(folder / "heads" / name, _head(kept, counts.get((layer, head)), mean)))
    here = {tuple(pair) for pair in config["heads"]}
    listed = [
        {"layer": layer, "head": head, **scores}
        for (layer, head), row in rows.items()
        if (scores := {name: _number(row[name]) for name in config["metrics"]}) and (layer, head) in here
    ]
    paths.append(_write(folder / "scatter_data.json", listed))
    paths += [_write(folder / stub, {}) for stub in ("server_config.json", "attributions/manifest.json")]
    return [*paths, _write(folder / "config.json", config, indent=2)]


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def _write(path: Path, content: Any, indent: int | None = None) -> Path:
    write_text_atomic(path, json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent) + "\n")
    return path


def _config(workspace: Workspace, run: Run, heads: pa.Table) -> dict[str, Any]:
    """config.json: that of the tree a run was read from, or a new one."""
    if ORIGIN in run.files:
        origin: dict[str, Any] = json.loads(workspace.file(run, ORIGIN).read_text(encoding="utf-8"))
        return origin
    known = [name for name in SCORE_NAMES if pc.any(pc.is_finite(heads[name])).as_py()]
    pairs = [[row["layer"], row["head"]] for row in heads.select(["layer", "head"]).to_pylist()]
    return {
        "model_name": run.model.name,
        "dataset_name": run.data.name if run.data else "",
        "heads": pairs,
        "n_layers": 1 + max(layer for layer, _ in pairs),
        "n_heads": 1 + max(head for _, head in pairs),
        "n_intervals": run.config["n_intervals"],
        "metrics": known,
        "metric_descriptions": {f.name: f.metadata[b"description"].decode() for f in SCORES if f.name in known},
        "head_data_pattern": PATTERN,
        **_DISPLAY,
        "pipeline_config": {
            "pipeline": f"attlas {run.attlas_version}",
            **run.config,
            "actual_sequences_processed": run.summary.get("n_sequences"),
        },
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), PLACES)


Kept = dict[str, Any]


def _sequences(table: pa.Table, texts: Mapping[int, list[str]]) -> dict[tuple[int, int], list[Kept]]:
    """Kept sequences of each head as the tree has them, in the table's order."""
    table = table.filter(pc.equal(table["by"], "weight"))
    found: dict[tuple[int, int], list[Kept]] = defaultdict(list)
    plain = _columns(table, "layer", "head", "sequence", "interval", "strength")
    for (layer, head, sequence, interval, activation), edges in zip(
        zip(*plain, strict=True), _edges(table), strict=True
    ):
        tokens = texts[sequence]
        query, key, weight = edges
        order = np.lexsort((key, query))
        flat = query.astype(np.int64) * len(tokens) + key
        found[layer, head].append(
            {
                "sequence_id": sequence,
                "interval": interval + 1,
                "tokens": tokens,
                "attention_indices": flat[order].tolist(),
                "attention_values": [round(value, PLACES) for value in weight[order].tolist()],
                "seq_len": len(tokens),
                "max_activation": _number(activation),
            }
        )
    return found


def _edges(table: pa.Table) -> Iterator[tuple[np.ndarray, ...]]:
    """Columns query, key and weight, row by row, without a Python object a number."""
    lists = [table[name].combine_chunks() for name in ("query", "key", "weight")]
    for row in range(table.num_rows):
        yield tuple(column[row].values.to_numpy(zero_copy_only=False) for column in lists)


def _head(kept: list[Kept], counts: list[int] | None, mean: float | None) -> dict[str, Any]:
    """heads/L…H….json."""
    return {
        "sequences": kept,
        "qk_distance_histogram": {"bin_edges": list(DISTANCES), "bin_values": _distances(kept)},
        "top_query_tokens": _top_tokens(kept, 0),
        "top_key_tokens": _top_tokens(kept, 1),
        "histogram": {
            "bin_edges": [round(part / N_PARTS, PLACES) for part in range(N_PARTS + 1)],
            "bin_values": counts or [0] * N_PARTS,
        },
        "statistics": {"n_samples": len(kept), "mean_max_activation": _number(mean)},
    }


def _distances(kept: list[Kept]) -> list[float]:
    """Kept mass by distance; what lies 4,096 positions away or more has no bin in HeadVis's tree."""
    total = np.zeros(len(DISTANCES) - 1)
    for sequence in kept:
        query, key = np.divmod(np.array(sequence["attention_indices"], dtype=np.int64), sequence["seq_len"] or 1)
        part = np.searchsorted(DISTANCES, np.abs(query - key), side="right") - 1
        inside = part < len(total)
        np.add.at(total, part[inside], np.array(sequence["attention_values"])[inside])
    return [round(value, PLACES) for value in total.tolist()]


def _top_tokens(kept: list[Kept], side: int) -> list[dict[str, Any]]:
    """Texts with the largest kept mass where they are query (side 0) or key (1)."""
    weighted = [
        (
            sequence["tokens"],
            np.divmod(np.array(sequence["attention_indices"], dtype=np.int64), sequence["seq_len"] or 1)[side],
            np.array(sequence["attention_values"]),
        )
        for sequence in kept
    ]
    return [{"token": token, "weight": round(weight, PLACES)} for token, weight in token_mass(weighted, N_TOKENS)]
