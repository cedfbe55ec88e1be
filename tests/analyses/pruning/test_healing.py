"""Healing lowers the held-out loss and leaves silenced parts silent."""

from __future__ import annotations

import pytest
import torch

from attlas.analyses.pruning.healing import HealConfig, heal
from attlas.analyses.pruning.surgery import build, silenced
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset, load_tokens
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.interp.drop import Drop


@pytest.mark.parametrize("objective", ["distill", "ce"])
def test_healing_lowers_the_loss(gpt2_mini: HookedModel, val_tokens: TokenDataset, objective: str) -> None:
    text = load_tokens("embedded:train", gpt2_mini.tokenizer, seq_len=64, n_tokens=8192)
    hf, _ = build(gpt2_mini, Drop(blocks=(2,)), "stock")
    before = [p.clone() for p in gpt2_mini.hf.parameters()]
    config = HealConfig(8, 1e-3, 4, objective=objective, eval_every=4)
    result = heal(hf, gpt2_mini, text, val_tokens.take(2), config)
    (_, start), (_, middle), (_, end) = result.eval_losses
    assert end < middle < start - 0.05
    assert result.table().num_rows == 9
    assert len(result.plot().data) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, gpt2_mini.hf.parameters(), strict=True))


def test_silent_parts_stay_silent(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    drop = Drop(attn=(1,), heads=((0, 2),))
    hf, _ = build(gpt2_mini, drop, "stock")
    heal(hf, gpt2_mini, val_tokens, val_tokens.take(1), HealConfig(2, 1e-3, 4), frozen=silenced(hf, drop))
    assert all(not p.any() for p in silenced(hf, drop))
    assert not hf.transformer.h[0].attn.c_proj.weight[64:96].any()
    assert hf.transformer.h[0].attn.c_proj.weight[96:].abs().sum() > 0


def test_vision_models_heal_too(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    hf, _ = build(vit_mini, Drop(attn=(1,), mlp=(2,)), "compact")
    losses = heal(hf, vit_mini, glyphs, glyphs.take(32), HealConfig(8, 3e-4, 16)).eval_losses
    assert losses[-1][1] < losses[0][1]


def test_bad_config() -> None:
    with pytest.raises(ConfigError, match="'kl'"):
        HealConfig(objective="kl")
    with pytest.raises(ConfigError, match="learning_rate"):
        HealConfig(learning_rate=0)
