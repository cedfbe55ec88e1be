"""Reads HeadVis's data tree, such as Neuronpedia's downloads, as a run of kind `heads`.

What a tree does not have (intervals, accounts, scores of ours) stays empty; what it has and this version does not know is
left out, and said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.heads.headvis import ORIGIN, PATTERN, SCORE_NAMES
from attlas.analyses.heads.scatter import scatter, top_heads
from attlas.analyses.heads.tables import (
    HEAD_ACCOUNT,
    HEAD_HISTOGRAMS,
    HEAD_INTERVALS,
    HEAD_SEQUENCES,
    HEAD_TEXTS,
    HEADS,
    N_PARTS,
)
from attlas.data.files import check_name
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.runs.record import Ref
from attlas.errors import ConfigError, WorkspaceError

_HEAD_KEYS = {"sequences", "qk_distance_histogram", "top_query_tokens", "top_key_tokens", "histogram", "statistics"}
_SEQUENCE_KEYS = {
    "sequence_id", "interval", "tokens", "attention_indices", "attention_values", "seq_len", "max_activation",
}  # fmt: skip
Place = tuple[int, int]


@dataclass(frozen=True)
class HeadVisTree(Result):
    """A tree as tables of `heads`.

    Attributes:
        config: config.json, less what is not known here.
        heads: those of the whole grid, in order.
        scores: name → float64 [head of the grid], NaN where the tree has none.
        sequences: rows of `head_sequences`, as the tree orders them.
        texts: sequence → its tokens.
        counts: sequences by activation, 50 parts of 0 … 1.
        hash: 16 hex digits over config.json and scatter_data.json.
        notes: what is missing or left out, a line each.
    """

    kind: ClassVar[str] = "heads"

    config: dict[str, Any]
    heads: list[Place]
    scores: dict[str, np.ndarray]
    sequences: list[dict[str, Any]]
    texts: dict[int, list[str]]
    counts: dict[Place, list[int]]
    hash: str
    notes: list[str] = field(default_factory=list)

    @property
    def model_name(self) -> str:
        return str(self.config["model_name"])

    def tables(self) -> dict[str, pa.Table]:
        layers, heads = ([pair[at] for pair in self.heads] for at in (0, 1))
        missing = np.full(len(self.heads), np.nan)
        columns: dict[str, Any] = {name: self.scores.get(name, missing) for name in SCORE_NAMES}
        columns |= {"layer": layers, "head": heads, "n_queries": [None] * len(layers)}
        return {
            "heads": HEADS.table(columns),
            "head_intervals": HEAD_INTERVALS.table([]),
            "head_account": HEAD_ACCOUNT.table([]),
            "head_sequences": HEAD_SEQUENCES.table(self.sequences),
            "head_texts": HEAD_TEXTS.table([{"sequence": s, "tokens": t} for s, t in sorted(self.texts.items())]),
            "head_histograms": HEAD_HISTOGRAMS.table(
                [{"layer": at[0], "head": at[1], "n_by_activation": counts} for at, counts in self.counts.items()]
            ),
        }

    def plot(self, x: str = "qk_distance", y: str = "pattern_entropy", colour: str = "induction_score") -> Any:
        """Scatter of all heads by two scores, coloured by a third."""
        return scatter(self.scores, self._names(), x, y, colour)

    def _names(self) -> list[str]:
        return [f"{layer}.{head}" for layer, head in self.heads]

    def summary(self) -> dict[str, Any]:
        """Headline numbers."""
        found: dict[str, Any] = {
            "n_heads": len(self.config["heads"]),
            "n_shown": len(self.texts),
            "imported_from": "HeadVis",
            "notes": self.notes,
        }
        return found | top_heads(self.scores, self._names())

    def _recorded_config(self) -> Any:
        return {
            "imported_from": "HeadVis",
            "n_intervals": self.config["n_intervals"],
            "pipeline_config": self.config.get("pipeline_config", {}),
        }

    def _files(self) -> Mapping[str, Callable[[Path], Any]]:
        text = json.dumps(self.config, ensure_ascii=False)
        return {ORIGIN: lambda path: path.write_text(text, encoding="utf-8")}

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return Ref(self.model_name, ""), Ref(str(self.config.get("dataset_name", "")), self.hash)


def load_headvis(folder: Path, track: Track = no_track) -> HeadVisTree:
    """Read a HeadVis data tree.

    Args:
        folder: holds config.json, scatter_data.json and heads/.

    Raises:
        ConfigError: it is no such tree, or a file of it is damaged; names file and fault.

    Example:
        >>> from attlas import Workspace
        >>> from attlas.analyses.heads import HeadsConfig, head_atlas, load_headvis, save_headvis
        >>> workspace = Workspace(folder / "workspace")
        >>> run = head_atlas(model, text, HeadsConfig(n_top=2, n_control=0)).save(workspace, model, text)
        >>> written = save_headvis(workspace, run, folder / "tree")
        >>> tree = load_headvis(folder / "tree")
        >>> tree.notes, tree.summary()["n_heads"]
        ([], 24)
        >>> tree.save(workspace).kind
        'heads'
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"'{folder}' is no HeadVis tree (no config.json); give the folder of config.json, scatter_data.json and heads/"
        )
    raw = {name: _bytes(folder / name) for name in ("config.json", "scatter_data.json")}
    config, listed = (_parsed(folder / name, content) for name, content in raw.items())
    notes: list[str] = []
    scores, metrics = _scores(folder / "scatter_data.json", listed, config, notes)
    config = _checked(folder / "config.json", config, metrics, list(scores))
    pairs = [(layer, head) for layer, head in config["heads"]]
    grid = sorted({*pairs, *np.ndindex(config["n_layers"], config["n_heads"])})
    reader = _Heads(folder / "heads", config)
    for pair in track(pairs, "heads"):
        reader.read(*pair)
    absent = sum(pair not in scores for pair in pairs)
    notes += [f"scatter_data.json lacks {absent} of {len(pairs)} heads: their scores are empty"] if absent else []
    columns = {name: np.array([scores.get(pair, {}).get(name, np.nan) for pair in grid]) for name in metrics}
    if not any(np.isfinite(values).any() for values in columns.values()):
        raise ConfigError(f"'{folder / 'scatter_data.json'}' holds no number; write the tree again")
    if "mean_activation" not in columns:  # HeadVis has it beside the sequences
        columns["mean_activation"] = np.array([reader.means.get(pair, np.nan) for pair in grid])
    digest = hashlib.sha256(b"".join(raw.values())).hexdigest()[:16]
    notes += reader.notes(len(pairs))
    return HeadVisTree(config, grid, columns, reader.rows, reader.texts, reader.counts, digest, notes)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read ({error.strerror or error}); write the tree again") from None


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not JSON ({str(error)[:80]}); write the tree again") from None


def _refuse(path: Path, told: str) -> ConfigError:
    return ConfigError(f"'{path}': {told}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _number(value: Any) -> float:
    """NaN for null."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:40]!r} is no number")
    return float(value)


def _scores(path: Path, listed: Any, config: Any, notes: list[str]) -> tuple[dict[Place, dict[str, float]], list[str]]:
    """Scores of each head, and the metrics that are known here; config.json lists them, or else the rows do."""
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise _refuse(path, "it must be a list of objects, one a head")
    named = config.get("metrics") if isinstance(config, dict) else None
    named = named if isinstance(named, list) else [name for row in listed[:1] for name in row]
    stated = list(dict.fromkeys([*map(str, named), *(name for row in listed for name in row)]))
    strangers = [name for name in stated if name not in (*SCORE_NAMES, "layer", "head")]
    if strangers:
        notes.append(f"scores that this version does not know are left out: {', '.join(strangers)}")
    metrics = [name for name in stated if name in SCORE_NAMES]
    found = {}
    for row in listed:
        if not (_is_int(row.get("layer")) and _is_int(row.get("head"))):
            raise _refuse(path, f"a row has no layer and head ({str(row)[:60]})")
        try:
            found[row["layer"], row["head"]] = {name: _number(row.get(name)) for name in metrics}
        except TypeError as error:
            raise _refuse(path, f"a score of head {row['layer']}.{row['head']}: {error}") from None
    return found, metrics


def _checked(path: Path, config: Any, metrics: list[str], listed: list[Place]) -> dict[str, Any]:
    """config.json with what the rest relies on in place."""
    if not isinstance(config, dict) or not isinstance(config.get("model_name"), str):
        raise _refuse(path, "it names no model (model_name)")
    heads = config.get("heads", [list(pair) for pair in listed])
    pairs_ = isinstance(heads, list) and all(
        isinstance(p, list) and len(p) == 2 and all(map(_is_int, p)) for p in heads
    )
    if not pairs_ or not heads:
        raise _refuse(path, f"'heads' must list [layer, head], one at least, not {str(heads)[:60]}")
    sizes = {}
    for at, name in enumerate(("n_layers", "n_heads")):
        stated = config.get(name, 0)
        sizes[name] = max(stated if _is_int(stated) else 0, 1 + max(pair[at] for pair in heads))
    if sizes["n_layers"] * sizes["n_heads"] > 1 << 20:
        raise _refuse(path, f"{sizes['n_layers']} layers of {sizes['n_heads']} heads are no model's")
    n_intervals = config.get("n_intervals", 5)
    if not (_is_int(n_intervals) and n_intervals > 0):
        raise _refuse(path, f"'n_intervals' is {str(n_intervals)[:40]}; it must be 1 or more")
    pattern = config.get("head_data_pattern", PATTERN)
    try:
        check_name(pattern, "head_data_pattern")
    except WorkspaceError as error:
        raise _refuse(path, str(error)) from None
    known = {"heads": heads, **sizes, "n_intervals": n_intervals, "head_data_pattern": pattern, "metrics": metrics}
    return {**config, **known, "has_umap": False, "umap_heads": []}


class _Heads:
    """Reads heads/, file by file."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self.pattern, self.n_intervals = folder, config["head_data_pattern"], config["n_intervals"]
        self.rows: list[dict[str, Any]] = []
        self.texts: dict[int, list[str]] = {}
        self.counts: dict[Place, list[int]] = {}
        self.means: dict[Place, float] = {}
        self.missing: list[str] = []
        self.strangers: dict[str, None] = {}

    def notes(self, n: int) -> list[str]:
        """What is missing or left out."""
        found = []
        if self.missing:
            found.append(f"{len(self.missing)} of {n} heads have no file ({self.missing[0]} …): no sequences of these")
        if self.strangers:
            found.append(f"fields that this version does not know are left out: {', '.join(self.strangers)}")
        return found

    def read(self, layer: int, head: int) -> None:
        """One head's file."""
        path = self.folder / self.pattern.replace("{layer}", str(layer)).replace("{head}", str(head))
        if not path.is_file():
            self.missing.append(path.name)
            return
        content = _parsed(path, _bytes(path))
        if not isinstance(content, dict) or not isinstance(content.get("sequences"), list):
            raise _refuse(path, "it holds no list 'sequences'")
        self._note(content, _HEAD_KEYS)
        counts = content.get("histogram", {})
        counts = counts.get("bin_values") if isinstance(counts, dict) else None
        if isinstance(counts, list) and len(counts) == N_PARTS and all(map(_is_int, counts)):
            self.counts[layer, head] = counts
        statistics = content.get("statistics", {})
        mean = statistics.get("mean_max_activation") if isinstance(statistics, dict) else None
        self.means[layer, head] = float(mean) if isinstance(mean, int | float) else float("nan")
        rows = []
        for sequence in content["sequences"]:
            try:
                row = self._sequence(sequence)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                told = f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
                number = sequence.get("sequence_id") if isinstance(sequence, dict) else sequence
                raise _refuse(path, f"sequence {str(number)[:40]}: {told}") from None
            rows.append({"layer": layer, "head": head, "by": "weight", **row})
        taken: dict[int, int] = {}
        for row in sorted(rows, key=lambda row: (-np.nan_to_num(row["strength"]), row["sequence"])):
            row["rank"] = taken[row["interval"]] = taken.get(row["interval"], -1) + 1
        self.rows += rows

    def _note(self, content: Mapping[str, Any], known: set[str]) -> None:
        self.strangers |= dict.fromkeys(name for name in content if name not in known)

    def _sequence(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise TypeError("it is no object")
        self._note(given, _SEQUENCE_KEYS)
        tokens, length, interval = given["tokens"], given["seq_len"], given["interval"]
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens) or len(tokens) != length:
            raise ValueError(f"its tokens must be {length} texts")
        if not (_is_int(interval) and 1 <= interval <= self.n_intervals):
            raise ValueError(f"interval {str(interval)[:40]} is not one of 1 … {self.n_intervals}")
        flat = np.array(given["attention_indices"], dtype=np.int64)
        weight = np.array(given["attention_values"], dtype=np.float64).astype(np.float32)
        if not np.isfinite(weight).all():
            raise ValueError("a weight is no finite number")
        if flat.shape != weight.shape or flat.ndim != 1:
            raise ValueError(f"{flat.size} attention_indices and {weight.size} attention_values")
        if flat.size and (flat.min() < 0 or flat.max() >= length**2):
            raise ValueError(f"attention_indices reach outside of {length} × {length}")
        query, key = np.divmod(flat, max(1, length))
        order = np.lexsort((key, -weight, query))  # as in a run of ours: the strongest keys of each query first
        return {
            "interval": interval - 1,
            "sequence": self._known_as(given["sequence_id"], tokens),
            "strength": _number(given["max_activation"]),
            "query": query[order],
            "key": key[order],
            "weight": weight[order],
        }

    def _known_as(self, number: Any, tokens: list[str]) -> int:
        if not _is_int(number):
            raise ValueError("its sequence_id is no whole number from 0")
        if self.texts.setdefault(number, tokens) != tokens:
            raise ValueError("another head has another text under this sequence_id")
        return int(number)
