"""Feature dashboards as Neuronpedia's JSON: the batch files that SAEDashboard's Neuronpedia runner writes.

Write only. Source are the tables of a "features" run: `features`, `examples`, `logits` and `histogram`. Fields that
Attlas does not measure (neuron alignment and correlations) are empty lists.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from attlas.data.files import write_text_atomic
from attlas.errors import SAEFormatError
from attlas.saes.config import SAEConfig

NAME = "neuronpedia-json"
BATCH = 128  # features in one file, as in SAEDashboard
_NEEDED = {
    "features": ("feature", "density"),
    "examples": ("feature", "stratum", "activation", "tokens", "activations"),
    "logits": ("feature", "token", "effect"),
    "histogram": ("feature", "bin_left", "bin_right", "count"),
}
_UNMEASURED = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_pearson",
    "correlated_neurons_l1",
    "correlated_features_indices",
    "correlated_features_pearson",
    "correlated_features_l1",
)


def save(tables: Mapping[str, pa.Table], cfg: SAEConfig, folder: Path) -> list[Path]:
    """Write `batch-0.json`, `batch-1.json` …, 128 features each.

    Args:
        tables: of a "features" run, by name.
        cfg: the SAE's configuration, for the model's and the hook's name.
        folder: made when it is not there.

    Raises:
        SAEFormatError: a table or a column is missing.
    """
    for name, columns in _NEEDED.items():
        if name not in tables:
            raise SAEFormatError(f"the features run lacks the table '{name}'; run attlas features again")
        missing = [column for column in columns if column not in tables[name].column_names]
        if missing:
            raise SAEFormatError(f"table '{name}' lacks {', '.join(missing)}; run attlas features again")
    grouped = {name: _by_feature(tables[name]) for name in ("examples", "logits", "histogram")}
    features = tables["features"].sort_by("feature").to_pylist()
    folder.mkdir(parents=True, exist_ok=True)
    layer = next((int(part) for part in cfg.hook_name.split(".") if part.isdigit()), None)
    paths = []
    for number, start in enumerate(range(0, len(features), BATCH)):
        record = {
            "model_id": cfg.model_name,
            "layer": layer,
            "sae_set": cfg.hook_name,
            "sae_id_suffix": None,
            "features": [_feature(row, grouped) for row in features[start : start + BATCH]],
        }
        paths.append(folder / f"batch-{number}.json")
        write_text_atomic(paths[-1], json.dumps(record, ensure_ascii=False))
    return paths


def _by_feature(table: pa.Table) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        grouped[row["feature"]].append(row)
    return grouped


def _feature(row: dict[str, Any], grouped: dict[str, dict[int, list[dict[str, Any]]]]) -> dict[str, Any]:
    index = row["feature"]
    logits = sorted(grouped["logits"].get(index, []), key=lambda r: r["effect"])
    down, up = [r for r in logits if r["effect"] < 0], [r for r in logits[::-1] if r["effect"] > 0]
    bars = sorted(grouped["histogram"].get(index, []), key=lambda r: r["bin_left"])
    return {
        "feature_index": index,
        **{name: [] for name in _UNMEASURED},
        "neg_str": [r["token"] for r in down],
        "neg_values": [r["effect"] for r in down],
        "pos_str": [r["token"] for r in up],
        "pos_values": [r["effect"] for r in up],
        "frac_nonzero": row["density"],
        "freq_hist_data_bar_values": [(r["bin_left"] + r["bin_right"]) / 2 for r in bars],
        "freq_hist_data_bar_heights": [r["count"] for r in bars],
        "logits_hist_data_bar_values": [],
        "logits_hist_data_bar_heights": [],
        "activations": [_activation(r) for r in grouped["examples"].get(index, [])],
    }


def _activation(row: dict[str, Any]) -> dict[str, Any]:
    """One example; the bin is named by its stratum, and its bounds are the example's own activation."""
    values = row["activations"] or []
    return {
        "bin_min": row["activation"],
        "bin_max": row["activation"],
        "bin_contains": row["stratum"],
        "qualifying_token_index": max(range(len(values)), key=values.__getitem__) if values else None,
        "tokens": row["tokens"],
        "values": values,
    }
