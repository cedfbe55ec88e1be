"""Redundancy scores against the formula read literally, in float64, a token at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.common.columns import MODULES
from attlas.analyses.common.losses import quality
from attlas.analyses.redundancy.modules import module_effects
from attlas.analyses.redundancy.scores import RedundancyConfig, redundancy
from attlas.analyses.redundancy.timeline import redundancy_timeline
from attlas.cli import main
from attlas.data.checkpoints import find_checkpoints
from attlas.data.images.dataset import ImageDataset
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel, load_model
from attlas.interp.drop import Drop, masked


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
    assert workspace.read_table(run, "block_runs").num_rows == 4 + 3 + 2
    assert len(result.plot().data) == 3


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="batch_size 0"):
        RedundancyConfig(batch_size=0)


def test_block_runs_equal_the_formula(
    gpt2_mini: HookedModel, vit_mini: HookedModel, val_tokens: TokenDataset, glyphs: ImageDataset
) -> None:
    """arccos(cos(x_l, x_{l+n}))/π of the last token, or of the class token of an image, a sequence at a time."""
    for model, data, inputs, token in (
        (gpt2_mini, val_tokens, val_tokens.tokens, -1),
        (vit_mini, glyphs.take(8), glyphs.pixels[:8], 0),
    ):
        rows = redundancy(model, data, RedundancyConfig(batch_size=2)).runs.table().to_pylist()
        _, cache = model.run_with_cache(inputs, ["*.hook_resid_pre", "*.hook_resid_post"])
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(4)] + ["blocks.3.hook_resid_post"]
        x = [cache[name][:, token].detach().double().numpy() for name in names]
        for row in rows:
            before, after = x[row["start"]], x[row["start"] + row["length"]]
            each = [
                math.acos(u @ v / math.sqrt((u @ u) * (v @ v))) / math.pi for u, v in zip(before, after, strict=True)
            ]
            assert row["distance"] == pytest.approx(np.mean(each), abs=1e-6)
            same = [r["distance"] for r in rows if r["length"] == row["length"]]
            assert row["best"] == (row["distance"] == min(same))
            assert row["low"] <= row["distance"] <= row["high"]


@pytest.mark.parametrize("name", ["gpt2_mini", "vit_mini"])
def test_modules_alone_equal_whole_passes_of_the_masked_model(
    name: str, request: pytest.FixtureRequest, val_tokens: TokenDataset, glyphs: ImageDataset
) -> None:
    model: HookedModel = request.getfixturevalue(name)
    data = val_tokens.take(3) if name == "gpt2_mini" else glyphs.take(5)
    result = module_effects(model, data, RedundancyConfig(batch_size=2))
    dense = quality(model, data)[0]
    for unit in (("attn", 0), ("mlp", 2), ("block", 3), ("attn", 3)):
        with masked(model, Drop.of([unit])):
            expected = quality(model, data)[0] - dense
        assert result.of(unit) == pytest.approx(expected, abs=2e-5)
        assert abs(expected) > 1e-4


def test_over_training(val_tokens: TokenDataset, tmp_path: Path) -> None:
    """Each checkpoint is scored as it is by itself; attention of a trained model does more than at the start."""
    checkpoints = find_checkpoints(EMBEDDED_DIR / "gpt2-mini" / "checkpoints")
    chosen = (checkpoints[0], checkpoints[-1])
    data = val_tokens.take(4)
    result = redundancy_timeline(chosen, lambda _model: data, device="cpu")
    alone = load_model(checkpoints[0].folder, device="cpu")
    np.testing.assert_allclose(result.scores[0], redundancy(alone, data).scores, atol=1e-12)
    loss = float(alone.cross_entropy(data.tokens).detach().double().mean())
    assert result.losses[0] == pytest.approx(loss, abs=1e-5)
    assert (result.scores[0, :, 0] < result.scores[1, :, 0]).all()
    assert result.agreement("attn")[-1] == 1
    run = result.save(Workspace(tmp_path / "w"), data=data.ref)
    rows = Workspace(tmp_path / "w").read_table(run, "redundancy_timeline").to_pylist()
    assert len(rows) == 2 * 4 * 3
    last = sorted((r for r in rows if r["step"] == chosen[1].step and r["module"] == "attn"), key=lambda r: r["rank"])
    assert [r["score"] for r in last] == sorted(r["score"] for r in last)
    assert len(result.plot("mlp").data) == 4


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = ["--n-tokens", "512", "--seq-len", "128", "--workspace", str(tmp_path / "w"), "--json"]
    assert main(["redundancy", "--heads", "--alone", *common]) == 0
    found = json.loads(capsys.readouterr().out)
    workspace = Workspace(tmp_path / "w")
    assert workspace.read_table(found["heads"]["run"], "head_effects").num_rows == 5 * 24
    assert found["heads"]["rank_correlation_taylor"] > 0
    assert workspace.read_table(found["alone"]["run"], "module_effects").num_rows == 12
    assert set(found["alone"]["rank_correlation_with_score"]) == {"attn", "mlp", "block"}
    assert found["best_run_of_2"] in (0, 1, 2)
    folder = str(EMBEDDED_DIR / "gpt2-mini" / "checkpoints")
    assert main(["redundancy", "--checkpoints", folder, "--revisions", "step1", "step2", *common]) == 2
    assert "--checkpoints DIR, a folder of Hugging Face checkpoints, or by --model" in capsys.readouterr().err
    assert main(["redundancy", "--checkpoints", str(tmp_path / "none"), *common]) == 2
    assert "not a folder" in capsys.readouterr().err


def _tiny_tokens(model: HookedModel) -> TokenDataset:
    tokens = torch.randint(1, model.cfg.d_vocab, (8, 20), generator=torch.Generator().manual_seed(0))
    return TokenDataset.from_tokens(tokens, "random")


@pytest.mark.parametrize("which", ["gpt2_mini", "tiny_llama"])
def test_redundancy_equals_the_formula(which: str, request: pytest.FixtureRequest) -> None:
    model: HookedModel = request.getfixturevalue(which)
    data = _tiny_tokens(model)
    found = redundancy(model, data)
    _, cache = model.run_with_cache(data.tokens)
    for layer in range(model.cfg.n_layers):
        x = cache[f"blocks.{layer}.hook_resid_pre"].double()
        y = x + cache[f"blocks.{layer}.hook_attn_out"].double()
        z = y + cache[f"blocks.{layer}.hook_mlp_out"].double()
        for slot, (before, after) in enumerate([(x, y), (y, z), (x, z)]):
            cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
            assert found.scores[layer, slot] == pytest.approx(1 - cosine.mean().item(), abs=1e-5)
    assert (found.low <= found.scores + 1e-12).all()
    assert (found.scores <= found.high + 1e-12).all()
    scores = [entry[2] for entry in found.ranking()]
    assert scores == sorted(scores)
    assert len(scores) == 2 * model.cfg.n_layers
