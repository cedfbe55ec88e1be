"""Attention statistics and feature attribution against loops and whole matrices in float64."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.errors import KernelError
from attlas.kernels import AttentionRule, attention_stats, feature_dfa

CAUSAL, FULL = AttentionRule(True), AttentionRule(False)


def brute(q, k, rule, mask, tokens, w, n):
    """Every statistic with the whole matrix, one query at a time."""
    B, H, T, e = q.shape
    causal, reach = rule.causal, rule.sliding_window or math.inf
    S, shift = k.shape[2], k.shape[2] - q.shape[2] if causal else 0
    found = {}
    for b in range(B):
        for h in range(H):
            u = q[b, h] @ k[b, h // (H // k.shape[1])].T / math.sqrt(e)
            for i in range(T):
                p = i + shift
                keys = [j for j in range(S) if (not causal or j <= p) and abs(p - j) < reach]
                keys = [j for j in keys if mask is None or mask[b, h, i, j]]
                s = u[i, keys]
                a = dict(zip(keys, s.softmax(0).tolist(), strict=True)) if keys else {}
                row = {
                    "entropy": -sum(v * math.log(v) for v in a.values()),
                    "max_weight": max(a.values(), default=0),
                    "sink_mass": a.get(0, 0),
                    "diagonal": a.get(p, 0),
                    "previous_token": a.get(p - 1, 0),
                    "mean_distance": sum(v * abs(p - j) for j, v in a.items()),
                    "n_keys": len(keys),
                    "spread": float((s - s.mean()).norm()) if keys else 0,
                    "window_mass": sum(v for j, v in a.items() if abs(p - j) < w),
                    "top_k_mass": sum(sorted(a.values())[-n:]),
                    "duplicate": sum(v for j, v in a.items() if p < S and tokens[b, j] == tokens[b, p] and j != p),
                    "induction": sum(
                        v for j, v in a.items() if j > 0 and p < S and tokens[b, j - 1] == tokens[b, p] and j - 1 != p
                    ),
                }
                for name, value in row.items():
                    found.setdefault(name, torch.zeros(B, H, T, dtype=torch.float64))[b, h, i] = value
    return found


@settings(max_examples=40, deadline=None)
@given(
    T=st.integers(1, 9),
    extra=st.integers(0, 3),
    causal=st.booleans(),
    sliding_window=st.none() | st.integers(1, 6),
    masked=st.booleans(),
    tile_elements=st.sampled_from([64, 1 << 16]),  # several blocks of queries; several sequences in one
    seed=st.integers(0, 99),
)
def test_matches_brute_force(T, extra, causal, sliding_window, masked, tile_elements, seed):
    rule = AttentionRule(causal, sliding_window)
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, T, 3, generator=g, dtype=torch.float64) * 4
    k = torch.randn(2, 2, T + extra, 3, generator=g, dtype=torch.float64)
    tokens = torch.randint(0, 3, (2, T + extra), generator=g)
    mask = torch.rand(2, 4, T, T + extra, generator=g) > 0.4 if masked else None
    tile = sys.modules["attlas.kernels.attention_stats"]
    before, tile.TILE_ELEMENTS = tile.TILE_ELEMENTS, tile_elements
    try:
        ours = attention_stats(q, k, rule, mask=mask, token_ids=tokens, window=3, top_k=2, column=True)
        if mask is not None:
            for least in (-math.inf, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min):
                again = attention_stats(q, k, rule, mask=torch.where(mask, 0.0, least).double())
                torch.testing.assert_close(again.entropy, ours.entropy)
                torch.testing.assert_close(again.spread, ours.spread)
                assert torch.equal(again.n_keys, ours.n_keys)
    finally:
        tile.TILE_ELEMENTS = before
    for name, value in brute(q, k, rule, mask, tokens, 3, 2).items():
        torch.testing.assert_close(getattr(ours, name).double(), value, atol=1e-9, rtol=1e-9, msg=name)
    assert (ours.lower_bound <= ours.entropy + 1e-9).all()
    torch.testing.assert_close(ours.column_mass.sum(-1), (ours.n_keys > 0).sum(-1).double())


def test_lower_bound_is_attained():
    q, k = torch.ones(1, 1, 1, 1).double(), torch.zeros(1, 1, 7, 1).double()
    k[0, 0, 3] = 2.5  # one logit stands out
    stats = attention_stats(q, k, FULL)
    torch.testing.assert_close(stats.lower_bound, stats.entropy)


def test_large_logits_and_half_precision():
    q, k = torch.full((1, 1, 4, 4), 200.0), torch.randn(1, 1, 4, 4) * 100
    stats = attention_stats(q, k, CAUSAL)
    assert all(v[..., 1:].isfinite().all() for v in stats.per_query().values())
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 30, 8), torch.randn(1, 1, 30, 8)
    half = attention_stats(q.bfloat16(), k.bfloat16(), CAUSAL)
    assert half.entropy.dtype == torch.float32
    torch.testing.assert_close(half.entropy, attention_stats(q, k, CAUSAL).entropy, atol=0.05, rtol=0.05)
    q[0, 0, 3] = math.nan
    assert attention_stats(q, k, CAUSAL).entropy[0, 0, 3].isnan()


def test_reduce_leaves_out_queries_without_keys():
    q, k = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[:, :, 2] = False
    stats = attention_stats(q, k, CAUSAL, mask=mask)
    assert (stats.entropy[..., 2] == 0).all()
    assert stats.n_keys[0, 0].tolist() == [1, 2, 0]
    reduced = stats.reduce()
    torch.testing.assert_close(reduced["entropy"], stats.entropy[..., :2].mean((0, 2)))
    torch.testing.assert_close(reduced["normalized_entropy"], stats.entropy[..., 1].mean(0) / math.log(2))


def test_bad_arguments():
    q, k = torch.randn(1, 4, 5, 2), torch.randn(1, 3, 5, 2)
    for bad, message in [
        (lambda: attention_stats(q, k, CAUSAL), "divide"),
        (lambda: attention_stats(q, k[:, :2, :4], CAUSAL), "keys"),
        (lambda: attention_stats(q, k[:, :2].double(), CAUSAL), "cast"),
        (lambda: attention_stats(q, k[:, :2], CAUSAL, window=0), "positive"),
    ]:
        with pytest.raises(KernelError, match=message):
            bad()


@pytest.mark.parametrize("rule", [CAUSAL, FULL, AttentionRule(True, 3)])
def test_dfa_sums_to_the_pre_activation(rule):
    torch.manual_seed(0)
    B, H, K, T, e, F = 2, 4, 2, 7, 3, 11
    q, k, v = (torch.randn(B, h, T, e, dtype=torch.float64) for h in (H, K, K))
    W_enc = torch.randn(H * e, F, dtype=torch.float64)
    features, positions, rows = torch.tensor([3, 0, 10]), torch.tensor([6, 0, 4]), torch.tensor([0, 1, 1])
    dfa = feature_dfa(q, k, v, W_enc, features, positions, rule, sequences=rows, keep_heads=True)
    allowed = rule.allowed(torch.arange(T), torch.arange(T))
    z = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
    pre = z.transpose(1, 2).reshape(B, T, H * e) @ W_enc
    torch.testing.assert_close(dfa.total, pre[rows, positions, features])
    torch.testing.assert_close(dfa.by_source.sum(-1), dfa.total)
    torch.testing.assert_close(dfa.by_head_source.sum(1), dfa.by_source)
    torch.testing.assert_close(dfa.by_head_source.sum(2), dfa.by_head)
    if rule.causal:
        assert (dfa.by_source[1, 1:] == 0).all()
    with pytest.raises(KernelError, match="feature 11"):
        feature_dfa(q, k, v, W_enc, torch.tensor([11]), torch.tensor([0]), rule)


@pytest.mark.parametrize("rule", [CAUSAL, FULL, AttentionRule(True, 3), AttentionRule(False, 2)])
def test_rule_counts_what_it_allows(rule):
    at = torch.arange(7)
    allowed = rule.allowed(at, at)
    assert torch.equal(rule.n_keys(at, 7), allowed.sum(1))
    assert torch.equal(rule.n_queries(7), allowed.sum(0))
    for first, last in ((0, 0), (2, 4), (6, 6)):
        low, high = rule.span(first, last, 7)
        seen = allowed[first : last + 1].any(0).nonzero().flatten()
        assert (low, high) == (int(seen[0]), int(seen[-1]) + 1)
    with pytest.raises(KernelError, match="sliding_window 0"):
        AttentionRule(True, 0)
