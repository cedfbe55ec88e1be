"""Triton kernels against the torch path; run by test_triton.py in a process where the interpreter is on."""

from __future__ import annotations

import os

import pytest
import torch

from attlas.errors import KernelError
from attlas.kernels import AttentionRule, attention_stats, sparse_decode, threshold_encode, topk_encode
from attlas.kernels.attention_stats import _stats_torch
from attlas.kernels.results import _PLAIN

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
device = "cpu" if interpreted else "cuda"


@pytest.mark.parametrize(
    ("N", "D", "F", "k", "dtype"),
    [
        (5, 20, 150, 4, torch.float32),
        (1, 16, 33, 33, torch.float32),
        (18, 7, 130, 1, torch.bfloat16),
        (3, 33, 64, 8, torch.float16),
    ],
)
def test_topk(N, D, F, k, dtype):
    from attlas.kernels.topk_encode_triton import select_triton

    torch.manual_seed(N)
    x, W = torch.randn(D, N).t().to(device, dtype), torch.randn(D, F).to(device, dtype)
    b = torch.randn(F).to(device, dtype)
    values, indices = select_triton(x, W, b, k, first=16)
    pre = x.double() @ W.double() + b.double()
    expected = pre.topk(k)
    torch.testing.assert_close(
        values.double(), expected.values, atol=1e-2 if dtype != torch.float32 else 1e-5, rtol=1e-2
    )
    torch.testing.assert_close(pre.gather(1, indices), expected.values, atol=1e-5, rtol=1e-5)


def test_topk_ties_nan_and_overflow():
    from attlas.kernels.topk_encode_triton import select_triton

    F = 200
    x = torch.ones(3, 1, device=device)
    W = torch.zeros(1, F, device=device)
    values, indices = select_triton(x, W, torch.zeros(F, device=device), 5, first=16)
    assert indices.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert (values == 0).all()
    rising = torch.arange(F, dtype=torch.float32, device=device)  # every chunk beats the threshold, so lists overflow
    values, indices = select_triton(x, W, rising, 3, first=16)
    assert indices.tolist() == [[199, 198, 197]] * 3
    rising[77] = float("nan")
    values, indices = select_triton(x, W, rising, 3, first=16)
    assert values[:, 0].isnan().all()
    assert indices[:, :2].tolist() == [[77, 199]] * 3


@pytest.mark.parametrize("seed", range(4))
def test_topk_of_quantised_inputs(seed):
    """Ties in every row, within a chunk and between chunks: the lower index wins, as in a stable float64 sort."""
    from attlas.kernels.topk_encode_triton import select_triton

    g = torch.Generator().manual_seed(seed)
    x, W, b = (torch.randint(-4, 5, s, generator=g) / 4 for s in ((7, 3), (3, 150), (150,)))
    values, indices = select_triton(x.to(device), W.to(device), b.to(device), 6, first=16)
    ordered = (x.double() @ W.double() + b.double()).sort(dim=1, descending=True, stable=True)
    assert torch.equal(indices.cpu(), ordered.indices[:, :6])
    assert torch.equal(values.cpu().double(), ordered.values[:, :6])


def test_negative_values_order():
    from attlas.kernels.topk_encode_triton import pack, unpack

    values = torch.tensor([3.0, -0.0, 0.0, -1e-40, 1e-40, -2.0, float("inf"), -float("inf")])
    keys = pack(values, torch.arange(8))
    order = keys.argsort(descending=True).tolist()
    assert order == [6, 0, 4, 1, 2, 3, 5, 7]
    back, indices = unpack(keys)
    assert torch.equal(back, values)
    assert indices.tolist() == list(range(8))


def test_threshold():
    torch.manual_seed(0)
    x, W, b = torch.randn(20, 12, device=device), torch.randn(12, 70, device=device), torch.randn(70, device=device)
    limit = torch.rand(70, device=device) * 3
    codes = threshold_encode(x, W, b, limit)
    pre = x @ W + b
    assert torch.equal(codes.counts, (pre > limit).sum(1))
    torch.testing.assert_close(codes.to_dense(), torch.where(pre > limit, pre, 0))
    with pytest.raises(KernelError, match="capacity"):
        threshold_encode(x, W, b, limit, capacity=3)


def test_decode_and_gradients():
    torch.manual_seed(0)
    x, W = torch.randn(6, 10, device=device), torch.randn(10, 40, device=device)
    b, b_dec, W_dec = torch.randn(40, device=device), torch.randn(10, device=device), torch.randn(40, 10, device=device)

    def gradients(dense):
        leaves = [t.clone().requires_grad_() for t in (x, W, b, b_dec, W_dec)]
        x_, W_, b_, bd_, Wd_ = leaves
        if dense:
            top = ((x_ - bd_) @ W_ + b_).topk(4)
            f = torch.zeros(6, 40, device=device).scatter(1, top.indices, top.values.relu())
            out = f @ Wd_ + bd_
        else:
            out = sparse_decode(*topk_encode(x_, W_, b_, 4, b_dec=bd_), Wd_, bd_)
        (out - x_).square().sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    for ours, plain in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("T", "S", "causal", "sliding_window", "e", "windows"),
    [
        (17, 17, True, None, 8, (3, 8)),
        (5, 19, True, None, 20, (1,)),
        (35, 35, False, None, 4, (1, 2, 5, 3)),  # most blocks of keys are beyond every window
        (20, 50, True, None, 4, (17,)),
        (1, 1, True, None, 8, (3, 8)),
        (37, 40, True, 5, 4, (3, 8)),
        (35, 35, False, 18, 4, (2,)),
    ],
)
def test_stats(T, S, causal, sliding_window, e, windows):
    torch.manual_seed(T)
    batch = 2 if T == 5 else 1  # the interpreter is slow; one case holds the batch's strides to account
    q, k = torch.randn(batch, 4, T, e, device=device) * 3, torch.randn(batch, 2, S, e, device=device)
    tokens = torch.randint(0, 4, (batch, S), device=device)
    rule = AttentionRule(causal, sliding_window)
    ours = attention_stats(q, k, rule, token_ids=tokens, window=windows, column=True)
    plain = _stats_torch(q, k, rule, None, tokens, windows, (), True)
    for name in (*_PLAIN, "induction", "duplicate", "column_mass"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), atol=2e-5, rtol=2e-4, msg=name)
    assert tuple(ours.window_masses) == windows
    for w in windows:
        torch.testing.assert_close(ours.window_masses[w], plain.window_masses[w], atol=2e-5, rtol=2e-4)


def test_segment_sum_of_a_feature_active_everywhere():
    from attlas.kernels.sparse_decode import FeatureOrder

    torch.manual_seed(0)
    indices = torch.stack([torch.zeros(53, dtype=torch.int64), torch.randint(1, 6, (53,))], 1).to(device)
    source, weights = torch.randn(53, 300, device=device), torch.randn(53, 2, device=device)
    dense = torch.zeros(53, 8, device=device).scatter(1, indices, weights)
    found = FeatureOrder(indices, 8).weighted_sum(source, weights)
    torch.testing.assert_close(found, dense.T @ source, atol=1e-4, rtol=1e-4)
    assert torch.equal(found, FeatureOrder(indices, 8).weighted_sum(source, weights))


def test_precision_follows_torch_by_either_switch():
    from attlas.kernels.topk_encode_triton import precision

    matmul = torch.backends.cuda.matmul
    assert precision(torch.bfloat16) == precision(torch.float32) == "ieee"
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"  # torch refuses to read allow_tf32 after this
        assert precision(torch.float32) == "tf32"
    finally:
        matmul.fp32_precision = before
