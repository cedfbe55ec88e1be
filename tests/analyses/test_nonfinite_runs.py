"""A model with NaN weights is refused by layer and hook in every analysis, and no run is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attlas.analyses.attention.anatomy import map_anatomy
from attlas.analyses.attention.head_entropy import entropy
from attlas.analyses.attention.selection import selection_layers
from attlas.analyses.attention.windows import window_loss
from attlas.analyses.circuits.logit_attribution import DLAConfig, dla
from attlas.analyses.circuits.tracing import LogitTarget, trace
from attlas.analyses.features.describe import FeaturesConfig, features
from attlas.analyses.redundancy.scores import redundancy
from attlas.cli import main
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import NonFiniteError
from attlas.interp import HookedModel, load_model

MATCH = r"layer 1, hook 'blocks\.1\."
ANALYSES: dict[str, Callable[..., Any]] = {
    "entropy": lambda m, data, sae, task: entropy(m, data),
    "anatomy": lambda m, data, sae, task: map_anatomy(m, data),
    "selection": lambda m, data, sae, task: selection_layers(m, data),
    "window_loss": lambda m, data, sae, task: window_loss(m, data),
    "redundancy": lambda m, data, sae, task: redundancy(m, data),
    "features": lambda m, data, sae, task: features(m, sae, data, FeaturesConfig(n_top=2)),
    "trace": lambda m, data, sae, task: trace(m, data.tokens[:1], LogitTarget((3,))),
    "dla": lambda m, data, sae, task: dla(m, task, DLAConfig()),
}


@pytest.fixture
def broken(tiny_llama: HookedModel) -> HookedModel:
    hf = copy.deepcopy(tiny_llama.hf)
    with torch.no_grad():
        hf.model.layers[1].self_attn.q_proj.weight[0, 0] = torch.nan
    return load_model(hf)


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_refuses(name: str, broken: HookedModel, random_sae: Any, random_task: Any) -> None:
    data = TokenDataset.from_tokens(torch.randint(0, 101, (2, 12)), "random")
    with pytest.raises(NonFiniteError, match=MATCH):
        ANALYSES[name](broken, data, random_sae(broken, 1), random_task())


def test_the_command_says_where_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    from attlas.data.models_catalog import EMBEDDED_DIR

    folder = tmp_path / "model"
    folder.mkdir()
    for file in (EMBEDDED_DIR / "gpt2-mini").iterdir():
        if file.suffix in (".json", ".txt"):
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(EMBEDDED_DIR / "gpt2-mini" / "model.safetensors")
    name = next(key for key in weights if key.endswith("h.1.mlp.c_fc.weight"))
    weights[name][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    where = ["--workspace", str(tmp_path / "ws"), "--n-tokens", "512"]
    assert main(["entropy", "--model", str(folder), *where]) == 2
    assert "NaN or infinite" in capsys.readouterr().err
    assert not Workspace(tmp_path / "ws").runs()
