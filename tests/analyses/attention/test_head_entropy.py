"""Entropy and redundancy against float64 readings of their formulas on the models' own maps and residual streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.attention.head_entropy import EntropyConfig, entropy
from attlas.analyses.redundancy.scores import redundancy
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel


def _tiny_tokens(model: HookedModel) -> TokenDataset:
    tokens = torch.randint(1, model.cfg.d_vocab, (8, 20), generator=torch.Generator().manual_seed(0))
    return TokenDataset.from_tokens(tokens, "random")


@pytest.mark.parametrize("which", ["gpt2_mini", "tiny_llama"])
def test_text_entropy_equals_brute_force(which: str, request: pytest.FixtureRequest) -> None:
    model: HookedModel = request.getfixturevalue(which)
    data = _tiny_tokens(model)
    found = entropy(model, data, EntropyConfig(batch_size=3, window=3))
    cache = model.capture(data.tokens, "*hook_pattern")
    for layer in range(model.cfg.n_layers):
        a = cache[f"blocks.{layer}.attn.hook_pattern"].double()[:, :, 1:]
        ent = -torch.special.xlogy(a, a).sum(-1)
        np.testing.assert_allclose(found.columns["entropy"][layer], ent.mean((0, 2)), atol=1e-4)
        n = torch.arange(2, 21).double()
        np.testing.assert_allclose(found.columns["normalized"][layer], (ent / n.log()).mean((0, 2)), atol=1e-4)
        np.testing.assert_allclose(found.columns["sink_mass"][layer], a[..., 0].mean((0, 2)), atol=1e-5)
        previous = torch.stack([a[:, :, i, i] for i in range(19)]).mean((0, 1))  # row i is query i + 1
        np.testing.assert_allclose(found.columns["previous_token"][layer], previous, atol=1e-5)
        local = torch.stack([a[:, :, i, max(0, i - 1) : i + 2].sum(-1) for i in range(19)]).mean((0, 1))
        np.testing.assert_allclose(found.columns["local_mass"][layer], local, atol=1e-5)
        np.testing.assert_allclose(
            found.columns["q50"][layer], ent.transpose(0, 1).flatten(1).quantile(0.5, -1), atol=1e-4
        )
    assert (found.columns["entropy"] >= found.columns["lower_bound"] - 1e-6).all()
    assert (
        (found.columns["low"] <= found.columns["entropy"]) & (found.columns["entropy"] <= found.columns["high"])
    ).all()


def test_induction_and_previous_token_heads_of_the_card(gpt2_mini: HookedModel) -> None:
    """Repeated random tokens: head 3.0 does induction (0.54 on the card), a head of layer 2 looks one back."""
    half = torch.randint(1, 4096, (8, 100), generator=torch.Generator().manual_seed(1))
    tokens = torch.cat([torch.zeros(8, 1, dtype=torch.long), half, half], dim=1)
    summary = entropy(gpt2_mini, TokenDataset.from_tokens(tokens, "repeated")).summary()
    assert summary["induction_head"] == "3.0"
    assert 0.2 < summary["induction_score"] < 0.35  # half of the queries have an earlier copy
    assert summary["previous_token_head"] == "2.0"


def test_vision_entropy_equals_brute_force(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    found = entropy(vit_mini, glyphs.take(5))
    a = vit_mini.capture(glyphs.take(5).pixels, "blocks.2.attn.hook_pattern")["blocks.2.attn.hook_pattern"].double()
    ent = -torch.special.xlogy(a, a).sum(-1)
    np.testing.assert_allclose(found.columns["entropy"][2], ent.mean((0, 2)), atol=1e-4)
    assert np.isnan(found.columns["induction"]).all()
    assert found.n_queries == 5 * 65


def test_saved_runs(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    data = _tiny_tokens(gpt2_mini)
    workspace = Workspace(tmp_path / "ws")
    first = entropy(gpt2_mini, data).save(workspace, gpt2_mini.ref, data.ref)
    second = redundancy(gpt2_mini, data).save(workspace, gpt2_mini.ref, data.ref)
    assert workspace.read_table(first, "head_entropy").num_rows == 24
    assert workspace.read_table(second, "redundancy").num_rows == 12
    field = workspace.read_table(first, "head_entropy").schema.field("entropy")
    assert field.metadata[b"unit"] == b"nats"


def test_bad_config() -> None:
    with pytest.raises(ConfigError, match="batch_size 0"):
        EntropyConfig(batch_size=0)
