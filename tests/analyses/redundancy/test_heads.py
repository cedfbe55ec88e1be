"""Head effects against full forward passes with the ablated head written out; first order against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.common.fills import donors
from attlas.analyses.redundancy.heads import EXACT, FURTHER, HeadEffectsConfig, head_effects
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel

Hook = Callable[[torch.Tensor, str], torch.Tensor]


def _naive(model: HookedModel, data: TokenDataset, layer: int, head: int, ablation: str) -> np.ndarray:
    """Δ loss of each sequence by whole forward passes; identity by an attention pattern that is the identity."""
    tokens = data.tokens
    _, cache = model.run_with_cache(tokens, [f"blocks.{layer}.attn.hook_z"])
    own = cache[f"blocks.{layer}.attn.hook_z"][:, :, head]
    fills = {"zero": torch.zeros(()), "mean": own.mean((0, 1)), "mean_per_position": own.mean(0)}
    if ablation == "resample":
        parts = [_naive_fill(model, data, layer, head, own[draw]) for draw in donors(len(data), 2, 0)]
        return np.mean(parts, axis=0)
    if ablation != "identity":
        return _naive_fill(model, data, layer, head, fills[ablation])

    def pattern(t: torch.Tensor, _n: str) -> torch.Tensor:
        t = t.clone()
        t[:, head] = torch.eye(t.shape[-1])
        return t

    return _with_hook(model, tokens, f"blocks.{layer}.attn.hook_pattern", pattern)


def _naive_fill(model: HookedModel, data: TokenDataset, layer: int, head: int, fill: torch.Tensor) -> np.ndarray:
    def z(t: torch.Tensor, _n: str) -> torch.Tensor:
        t = t.clone()
        t[:, :, head] = fill
        return t

    return _with_hook(model, data.tokens, f"blocks.{layer}.attn.hook_z", z)


@torch.no_grad()
def _with_hook(model: HookedModel, tokens: torch.Tensor, name: str, fn: Hook) -> np.ndarray:
    clean = model.cross_entropy(tokens).mean(-1)
    with model.hooks({name: fn}):
        return (model.cross_entropy(tokens).mean(-1) - clean).double().numpy()


@pytest.mark.parametrize("name", ["gpt2_mini", "tiny_llama"])
def test_exact_effects_equal_whole_forward_passes(name: str, request: pytest.FixtureRequest) -> None:
    model: HookedModel = request.getfixturevalue(name)
    data = TokenDataset.from_tokens(torch.randint(0, model.cfg.d_vocab, (3, 16)), "random")
    every = (*EXACT, *FURTHER)
    result = head_effects(model, data, HeadEffectsConfig(every, heads_per_forward=4, batch_size=2, resample_draws=2))
    for ablation in every:
        for layer, head in ((0, 0), (1, 5), (model.cfg.n_layers - 1, 3)):
            expected = _naive(model, data, layer, head, ablation)
            found = result.per_sequence[ablation][:, layer, head]
            np.testing.assert_allclose(found, expected, atol=2e-5)
            assert np.abs(expected).max() > 1e-4


def test_first_order_is_the_slope_of_scaling_a_head(tiny_llama: HookedModel) -> None:
    data = TokenDataset.from_tokens(torch.randint(0, 101, (3, 16)), "random")
    taylor = head_effects(tiny_llama, data, HeadEffectsConfig(("taylor",), batch_size=2)).per_sequence["taylor"]
    for layer, head in ((0, 2), (2, 5)):
        losses = []
        for scale in (0.99, 1.01):

            def fn(z: torch.Tensor, _n: str, head: int = head, scale: float = scale) -> torch.Tensor:
                z = z.clone()
                z[:, :, head] *= scale
                return z

            with torch.no_grad(), tiny_llama.hooks({f"blocks.{layer}.attn.hook_z": fn}):
                losses.append(tiny_llama.cross_entropy(data.tokens).double().mean(-1).numpy())
        np.testing.assert_allclose(taylor[:, layer, head], (losses[0] - losses[1]) / 0.02, rtol=0.02, atol=1e-4)


def test_how_first_order_ranks_heads_is_told(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    """It need not rank them well (0.5 on some text, 0.2 on other): the number is told beside it, and is SciPy's."""
    from scipy.stats import spearmanr

    result = head_effects(gpt2_mini, val_tokens, HeadEffectsConfig(("zero", "taylor")))
    exact, first_order = (result.per_sequence[a].mean(0).ravel() for a in ("zero", "taylor"))
    assert result.rank_correlation("taylor") == pytest.approx(spearmanr(exact, first_order).statistic)
    assert result.summary()["rank_correlation_taylor"] == result.rank_correlation("taylor")


def test_images_and_saving(vit_mini: HookedModel, glyphs: ImageDataset, tmp_path: Path) -> None:
    data = glyphs.take(6)
    result = head_effects(vit_mini, data, HeadEffectsConfig(("zero", "identity", "taylor_abs"), batch_size=4))
    run = result.save(Workspace(tmp_path / "w"), vit_mini.ref, data.ref)
    table = Workspace(tmp_path / "w").read_table(run, "head_effects")
    assert table.num_rows == 3 * 24
    with (
        torch.no_grad(),
        vit_mini.hooks({"blocks.1.attn.hook_z": lambda z, _n: z * torch.eye(6)[2].logical_not()[:, None]}),
    ):
        expected = torch.nn.functional.cross_entropy(vit_mini(data.pixels), data.labels, reduction="none")
    with torch.no_grad():
        expected -= torch.nn.functional.cross_entropy(vit_mini(data.pixels), data.labels, reduction="none")
    np.testing.assert_allclose(result.per_sequence["zero"][:, 1, 2], expected.numpy(), atol=2e-5)
    assert len(result.plot().data) == 1


def test_bad_config() -> None:
    with pytest.raises(ConfigError, match="'nil'"):
        HeadEffectsConfig(("nil",))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        HeadEffectsConfig(u=2)
