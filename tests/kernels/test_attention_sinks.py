"""Learned sinks: statistics, weights and attribution against a softmax with one logit more, in float64."""

import math
from dataclasses import replace

import pytest
import torch

from attlas.errors import KernelError
from attlas.kernels import AttentionRule, attention_stats, feature_dfa
from attlas.kernels.attention_tiles import attention_tile, tile_blocks

B, H, K, T, E = 2, 4, 2, 9, 3


def _case(scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    q, k = (torch.randn(B, n, T, E, generator=g, dtype=torch.float64) for n in (H, K))
    return q * scale, k, torch.randn(H, generator=g, dtype=torch.float64) * scale


def _maps(q, k, rule, mask=None):
    """(weights on keys [B, H, T, T], on the sink [B, H, T], logits with the sink last, −inf where closed)."""
    at = torch.arange(T)
    logits = rule.capped(q @ k.repeat_interleave(H // K, 1).mT * E**-0.5)
    allowed = rule.allowed(at, at) if mask is None else rule.allowed(at, at) & mask
    logits = logits.masked_fill(~allowed, -math.inf)
    whole = torch.cat([logits, rule.sinks[:, None, None].expand(B, H, T, 1)], -1)
    weights = whole.softmax(-1)
    return weights[..., :-1], weights[..., -1], whole


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize(
    "rule", [AttentionRule(True), AttentionRule(True, 4), AttentionRule(False), AttentionRule(True, softcap=3.0)]
)
def test_statistics_are_those_of_a_softmax_with_one_logit_more(rule: AttentionRule, scale: float) -> None:
    q, k, sinks = _case(scale)
    rule = replace(rule, sinks=sinks)
    weights, taken, logits = _maps(q, k, rule)
    found = attention_stats(q, k, rule, token_ids=torch.arange(T) % 3, window=2, top_k=3, column=True)
    every = torch.cat([weights, taken[..., None]], -1)
    at = torch.arange(T)
    distance = (at[:, None] - at).abs().double()
    opened = logits.isfinite()
    n = opened.sum(-1)
    mean = logits.masked_fill(~opened, 0).sum(-1) / n
    expected = {
        "entropy": torch.special.entr(every).sum(-1),
        "max_weight": weights.amax(-1),
        "sink_mass": weights[..., 0],
        "diagonal": weights.diagonal(0, -2, -1),
        "mean_distance": (weights * distance).sum(-1),
        "window_mass": (weights * (distance < 2)).sum(-1),
        "top_k_mass": weights.topk(3).values.sum(-1),
        "learned_sink": taken,
        "log_z": logits.logsumexp(-1),
        "spread": (logits - mean[..., None]).masked_fill(~opened, 0).norm(dim=-1),
        "column_mass": weights.sum(-2),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), value, atol=1e-9, rtol=1e-9, msg=name)
    assert torch.equal(found.n_keys, n.expand(B, H, T))
    assert (found.lower_bound <= found.entropy + 1e-9).all()
    assert (found.normalized_entropy.nan_to_num(0) <= 1 + 1e-12).all()
    plain = attention_stats(q, k, replace(rule, sinks=None))
    assert (plain.entropy - found.entropy).abs().max() > 0.01  # it makes a difference


def test_padding_has_no_key_and_no_sink() -> None:
    q, k, sinks = _case(1.0)
    rule = AttentionRule(True, sinks=sinks)
    real = torch.ones(B, T, dtype=torch.bool)
    real[0, :3] = False
    mask = real[:, None, None] & real[:, None, :, None]
    weights, _, _ = _maps(q, k, rule, mask)
    found = attention_stats(q, k, rule, mask=mask, column=True)
    for value in (found.entropy, found.learned_sink, found.sink_mass, found.spread):
        assert not value[0, :, :3].any()
    assert not found.n_keys[0, :, :3].any()
    torch.testing.assert_close(found.column_mass[0], weights[0, :, 3:].sum(-2))


def test_attribution_is_to_what_the_keys_keep() -> None:
    q, k, sinks = _case(1.0)
    rule = AttentionRule(True, 4, sinks=sinks)
    weights, _, _ = _maps(q, k, rule)
    g = torch.Generator().manual_seed(2)
    v, W_enc = torch.randn(B, K, T, E, generator=g).double(), torch.randn(H * E, 5, generator=g).double()
    z = (weights @ v.repeat_interleave(H // K, 1)).transpose(1, 2).flatten(2)
    features, positions, rows = torch.tensor([0, 4, 2]), torch.tensor([8, 3, 0]), torch.tensor([0, 1, 1])
    found = feature_dfa(q, k, v, W_enc, features, positions, rule, sequences=rows)
    torch.testing.assert_close(found.total, (z @ W_enc)[rows, positions, features])


def test_what_does_not_know_them_refuses() -> None:
    q, k, sinks = _case(1.0)
    rule = AttentionRule(True, sinks=sinks)
    with pytest.raises(KernelError, match="tiles do not know learned sinks"):
        attention_tile(q, q, rule, next(tile_blocks(B, H, T, causal=True)))
    with pytest.raises(KernelError, match="one a head"):
        attention_stats(q, k, replace(rule, sinks=sinks[:2]))
