"""Attention of PyTorch's own modules, and which are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from attlas.analyses.stability.tracker import EntropyTracker
from attlas.errors import ConfigError, UnsupportedModelError

from .tracked import entropy_of


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_with_masks(batch_first: bool) -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=batch_first).train()
    x = torch.randn(3, 6, 16)
    given = x if batch_first else x.transpose(0, 1)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[0, 4:] = True
    with EntropyTracker(layer, every=1) as tracker:
        _, weights = layer(given, given, given, attn_mask=future, key_padding_mask=padding, average_attn_weights=False)
        tracker.step()
    table = tracker.table().to_pandas()
    real = ~padding
    expected = entropy_of(weights.detach().double()).transpose(0, 1)[:, real].mean(1)
    np.testing.assert_allclose(table.entropy, expected, atol=1e-5)
    assert (table.n_queries == 16).all()
    q = layer.in_proj_weight[:16]
    np.testing.assert_allclose(table.sigma_q, float(torch.linalg.matrix_norm(q, 2).detach()), rtol=5e-3)
    assert (table.lower_bound >= table.weight_bound - 1e-6).all()


def test_transformer_encoder_and_cross_attention() -> None:
    model = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True).train()
    with EntropyTracker(model, every=1) as tracker:
        model(torch.randn(2, 5, 16), torch.randn(2, 3, 16))
        tracker.step()
    table = tracker.table().to_pandas()
    assert list(dict.fromkeys(table.site)) == [
        "encoder.layers.0.self_attn",
        "decoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
    ]
    cross = table[table.site.str.endswith("multihead_attn")]
    assert cross.weight_bound.isna().all()  # its inputs are two sequences
    assert (cross.entropy <= np.log(5) + 1e-6).all()


def test_refusals_name_what_is_not_read() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(UnsupportedModelError, match="'bloom' adds ALiBi"):
        EntropyTracker(bloom)

    class FlashAttentionOnly(nn.Module):
        pass

    with pytest.raises(UnsupportedModelError, match="FlashAttentionOnly"):
        EntropyTracker(nn.Sequential(FlashAttentionOnly()))
    with pytest.raises(UnsupportedModelError, match="add_bias_kv"):
        EntropyTracker(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    with pytest.raises(ConfigError, match="every 0"):
        EntropyTracker(nn.MultiheadAttention(8, 2), every=0)
    with pytest.raises(ConfigError, match="evry"):
        EntropyTracker(nn.MultiheadAttention(8, 2), evry=5)
