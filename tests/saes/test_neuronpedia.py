"""The Neuronpedia export, from made-up tables."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from attlas.errors import SAEFormatError
from attlas.saes import SAEConfig
from attlas.saes.formats import neuronpedia

CFG = SAEConfig(d_in=8, d_sae=200, k=2, hook_name="blocks.3.attn.hook_z", model_name="gpt2-mini")


def tables() -> dict[str, pa.Table]:
    return {
        "features": pa.table({"feature": list(range(130)), "density": [i / 1000 for i in range(130)]}),
        "examples": pa.table(
            {
                "feature": [5, 5],
                "stratum": ["top", "q75"],
                "activation": [3.0, 1.0],
                "tokens": [["a", " b", " c"], ["d"]],
                "activations": [[0.0, 3.0, 1.0], [1.0]],
            }
        ),
        "logits": pa.table({"feature": [5, 5, 5], "token": ["x", "y", "z"], "effect": [0.5, -0.2, 0.9]}),
        "histogram": pa.table({"feature": [5, 5], "bin_left": [1.0, 0.0], "bin_right": [2.0, 1.0], "count": [3, 7]}),
    }


def test_batches_and_fields(tmp_path: Path) -> None:
    paths = neuronpedia.save(tables(), CFG, tmp_path)
    assert [path.name for path in paths] == ["batch-0.json", "batch-1.json"]
    records = [json.loads(path.read_text()) for path in paths]
    assert [len(record["features"]) for record in records] == [128, 2]
    assert (records[0]["model_id"], records[0]["layer"], records[0]["sae_set"]) == ("gpt2-mini", 3, CFG.hook_name)
    feature = records[0]["features"][5]
    assert feature["feature_index"] == 5
    assert (feature["pos_str"], feature["pos_values"]) == (["z", "x"], [0.9, 0.5])
    assert (feature["neg_str"], feature["neg_values"]) == (["y"], [-0.2])
    assert feature["freq_hist_data_bar_values"] == [0.5, 1.5]
    assert feature["freq_hist_data_bar_heights"] == [7, 3]
    top = feature["activations"][0]
    assert (top["tokens"], top["values"], top["qualifying_token_index"]) == (["a", " b", " c"], [0.0, 3.0, 1.0], 1)
    assert feature["frac_nonzero"] == 0.005
    assert records[0]["features"][6]["activations"] == []


def test_missing_tables_and_columns_are_named(tmp_path: Path) -> None:
    some = tables()
    del some["logits"]
    with pytest.raises(SAEFormatError, match="lacks the table 'logits'"):
        neuronpedia.save(some, CFG, tmp_path)
    some = tables() | {"examples": pa.table({"feature": [1]})}
    with pytest.raises(SAEFormatError, match="table 'examples' lacks stratum, activation, tokens, activations"):
        neuronpedia.save(some, CFG, tmp_path)
