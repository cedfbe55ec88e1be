"""A compact checkpoint's config.json that lies is refused in one line, before anything is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from attlas.analyses.pruning.checkpoint import export
from attlas.errors import AttlasError
from attlas.interp import HookedModel, load_model
from attlas.interp.drop import Drop


@pytest.fixture(scope="module")
def honest(tiny_llama: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compact") / "llama"
    export(tiny_llama, Drop(attn=(1,)), folder, verify=False)
    assert load_model(folder, device="cpu").cfg.n_layers == 3
    return folder


@pytest.mark.parametrize(
    "lie",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": "three"},
        {"hidden_size": 96},
        {"vocab_size": 10**12},
        {"intermediate_size": 7},
        {"num_attention_heads": 0},
        {"architectures": ["PrunedNonsense"]},
        {"architectures": "PrunedLlamaForCausalLM"},
    ],
    ids=str,
)
def test_lies_on_compact_folders(honest: Path, tmp_path: Path, lie: dict[str, Any]) -> None:
    shutil.copytree(honest, tmp_path / "it")
    path = tmp_path / "it" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | lie))
    with pytest.raises(AttlasError) as caught:
        load_model(tmp_path / "it", device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
