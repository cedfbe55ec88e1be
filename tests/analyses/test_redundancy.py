"""Redundancy scores against the formula read literally, in float64, a token at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attlas.analyses.redundancy import MODULES, RedundancyConfig, redundancy
from attlas.data.images import ImageDataset
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel


def _literal(model: HookedModel, inputs: object) -> np.ndarray:
    """1 − E[x·y / |x||y|], x the residual stream before a module, y = x + the module's own output."""
    _, cache = model.run_with_cache(inputs, ["*.hook_resid_pre", "*.hook_attn_out", "*.hook_mlp_out"])  # type: ignore[arg-type]
    found = np.empty((model.cfg.n_layers, 3))
    for layer in range(model.cfg.n_layers):
        x, attn, mlp = (
            cache[f"blocks.{layer}.{n}"].detach().double().numpy().reshape(-1, model.cfg.d_model)
            for n in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
        )
        pairs = ((x, x + attn), (x + attn, x + attn + mlp), (x, x + attn + mlp))
        for slot, (before, after) in enumerate(pairs):
            cosines = [u @ v / np.sqrt((u @ u) * (v @ v)) for u, v in zip(before, after, strict=True)]
            found[layer, slot] = 1 - np.mean(cosines)
    return found


def test_scores_equal_the_formula_on_text(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    result = redundancy(gpt2_mini, val_tokens, RedundancyConfig(batch_size=3))
    np.testing.assert_allclose(result.scores, _literal(gpt2_mini, val_tokens.tokens), atol=2e-6)
    assert result.n_tokens == val_tokens.tokens.numel()
    assert (result.low <= result.scores).all()
    assert (result.scores <= result.high).all()


def test_scores_equal_the_formula_on_images(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    data = glyphs.take(8)
    np.testing.assert_allclose(redundancy(vit_mini, data).scores, _literal(vit_mini, data.pixels), atol=2e-6)


def test_a_silenced_module_scores_zero(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    with gpt2_mini.hooks({"blocks.2.hook_attn_out": lambda t, _n: t * 0}):
        result = redundancy(gpt2_mini, val_tokens.take(2))
    assert abs(result.scores[2, MODULES.index("attn")]) < 1e-6
    assert result.ranking()[0][:2] == (2, "attn")


def test_saved_run_holds_the_table(gpt2_mini: HookedModel, val_tokens: TokenDataset, tmp_path: Path) -> None:
    result = redundancy(gpt2_mini, val_tokens.take(2))
    workspace = Workspace(tmp_path / "w")
    run = result.save(workspace, gpt2_mini.ref, val_tokens.ref)
    assert run.kind == "redundancy"
    assert workspace.read_table(run, "redundancy").num_rows == 3 * gpt2_mini.cfg.n_layers
    assert len(result.plot().data) == 3


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="batch_size 0"):
        RedundancyConfig(batch_size=0)
