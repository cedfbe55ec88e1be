"""Triton kernels against the torch path; run by test_triton.py in a process where the interpreter is on."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.errors import KernelError
from attlas.kernels import (
    AttentionRule,
    attention_stats,
    batch_topk_encode,
    sparse_decode,
    threshold_encode,
    topk_encode,
)
from attlas.kernels.attention_stats import _stats_torch
from attlas.kernels.results import _PLAIN

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
device = "cpu" if interpreted else "cuda"


@pytest.fixture(autouse=interpreted)
def interpreter(monkeypatch):
    """Rounds to bfloat16 as a GPU does, where the interpreter cuts bits off; and takes maxima at once, not one by one."""
    from triton import language as tl
    from triton.runtime import interpreter

    from attlas.kernels.block_product_triton import _nan_max

    slow_convert, slow_reduce = interpreter._convert_float, interpreter.ReduceOps.generic_reduce

    def convert(data, source, target, mode):
        if source != tl.float32 or target != tl.bfloat16:
            return slow_convert(data, source, target, mode)
        bits = np.ascontiguousarray(data).view(np.uint32)
        nearest = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16  # the even one of two as near
        return np.where(np.isnan(data), 0x7FC0, nearest).astype(np.uint16)

    def reduce(self, values):
        if self.combine_fn is not _nan_max or self.keep_dims:
            return slow_reduce(self, values)
        return (self.to_tensor(np.max(values[0].handle.data, axis=self.axis), values[0].dtype),)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", reduce)


def select(x, W, b, k, grid=torch.float32, tiles=None):
    from attlas.kernels.topk_encode_triton import select_triton

    values, indices = select_triton(x.to(device), W.to(device), b.to(device), k, grid, tiles=tiles)
    return values.cpu(), indices.cpu()


def stable_topk(pre, k):
    ordered = pre.double().sort(dim=1, descending=True, stable=True)
    return ordered.values[:, :k], ordered.indices[:, :k]


def chunks(rows, columns, block=8):
    from attlas.kernels.block_product_triton import Tiling

    return Tiling(rows, columns, block)


@pytest.mark.parametrize(
    ("N", "D", "F", "k", "dtype", "tiles"),
    [
        (3, 20, 120, 4, torch.float32, (2, 64)),
        (1, 16, 33, 33, torch.float32, None),  # k is all there is, and the last block is not whole
        (2, 7, 70, 1, torch.bfloat16, None),
        (2, 33, 64, 8, torch.float16, (1, 40)),
        (1, 5, 130, 70, torch.float32, (2, 88)),  # more than a chunk has blocks
    ],
)
def test_topk_in_float32(N, D, F, k, dtype, tiles):
    torch.manual_seed(N)
    x, W, b = torch.randn(D, N).t().to(dtype), torch.randn(D, F).to(dtype), torch.randn(F).to(dtype)
    values, indices = select(x, W, b, k, tiles=tiles and chunks(*tiles))
    pre = x.double() @ W.double() + b.double()
    expected, _ = stable_topk(pre, k)
    rounding = 1e-2 if dtype != torch.float32 else 1e-5
    torch.testing.assert_close(values.double(), expected, atol=rounding, rtol=rounding)
    torch.testing.assert_close(pre.gather(1, indices), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tiles"), [(torch.float32, (3, 64)), (torch.bfloat16, (1, 96)), (torch.float16, None)]
)
def test_topk_on_the_bfloat16_grid(dtype, tiles):
    """The set is that of a stable sort of rounded numbers; values are of the inputs as they are, or rounded with them."""
    torch.manual_seed(1)
    N, D, F, k = 3, 40, 100, 6
    x, W, b = torch.randn(N, D).to(dtype), torch.randn(F, D).to(dtype).t(), torch.randn(F).to(dtype)
    values, indices = select(x, W, b, k, torch.bfloat16, tiles and chunks(*tiles))
    coarse = (x.bfloat16().double() @ W.bfloat16().double() + b.double()).bfloat16()
    assert torch.equal(indices.sort(1).values, stable_topk(coarse, k)[1].sort(1).values)
    exact = (x.double() @ W.double() + b.double()).gather(1, indices)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(values.double(), exact, atol=rounding, rtol=rounding)
    assert bool((values[:, 1:] <= values[:, :-1]).all())


def test_topk_ties_nan_and_order():
    F = 130
    x, W = torch.ones(1, 1), torch.zeros(1, F)
    values, indices = select(x, W, torch.zeros(F), 5, tiles=chunks(2, 72))
    assert indices.tolist() == [[0, 1, 2, 3, 4]]
    assert (values == 0).all()
    rising = torch.arange(F, dtype=torch.float32)  # each piece beats the one before, so lists are cut again and again
    for grid in (torch.float32, torch.bfloat16):
        values, indices = select(x, W, rising, 3, grid, chunks(2, 96))
        assert indices.tolist() == [[129, 128, 127]]
    rising[77], rising[100:120] = float("nan"), float("inf")
    values, indices = select(x, W, rising, 3, tiles=chunks(2, 72))
    assert values[0, 0].isnan()
    assert indices.tolist() == [[77, 100, 101]]
    small = torch.tensor([3.0, -0.0, 0.0, -1e-40, 1e-40, -2.0, float("inf"), -float("inf")])
    values, indices = select(torch.ones(1, 1), torch.zeros(1, 8), small, 8)
    assert indices.tolist() == [[6, 0, 4, 1, 2, 3, 5, 7]]
    assert torch.equal(values[0], small[indices[0]])


@pytest.mark.parametrize("seed", range(2))
def test_topk_of_quantised_inputs(seed):
    """Ties in every row, within a chunk and between chunks: the lower index wins, as in a stable float64 sort."""
    g = torch.Generator().manual_seed(seed)
    x, W, b = (torch.randint(-4, 5, s, generator=g) / 4 for s in ((2, 3), (3, 100), (100,)))
    values, indices = select(x, W, b, 6, (torch.float32, torch.bfloat16)[seed], chunks(1, 64))
    expected, at = stable_topk(x.double() @ W.double() + b.double(), 6)
    assert torch.equal(indices, at)
    assert torch.equal(values.double(), expected)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data(), N=st.integers(1, 2), D=st.integers(1, 19), F=st.integers(1, 60))
def test_topk_of_any_shape_and_strides(data, N, D, F):
    k = data.draw(st.integers(1, min(F, 12)))
    torch.manual_seed(F)
    x, W = torch.randn(2 * N, D)[::2], torch.randn(F, 2 * D)[:, ::2].t()
    if data.draw(st.booleans()):
        W = W.contiguous()
    b = torch.randn(2 * F)[::2]
    _, indices = select(x, W, b, k, tiles=chunks(2, -(-max(k, F // 2) // 8) * 8))
    pre = x.double() @ W.double() + b.double()
    torch.testing.assert_close(pre.gather(1, indices), stable_topk(pre, k)[0], atol=1e-5, rtol=1e-5)


def test_as_many_as_two_thousand(monkeypatch):
    from attlas.kernels import topk_encode_triton

    monkeypatch.setattr(topk_encode_triton, "interpreting", lambda: False)  # pieces as large as on a GPU: fewer of them
    torch.manual_seed(0)
    x, W, b = torch.randn(1, 3), torch.randn(3, 2100), torch.randn(2100)
    _, indices = select(x, W, b, 2048, torch.float32)
    pre = x.double() @ W.double() + b.double()
    torch.testing.assert_close(pre.gather(1, indices), stable_topk(pre, 2048)[0], atol=1e-5, rtol=1e-5)
    assert indices.unique().numel() == 2048


def test_autocast_has_no_effect():
    torch.manual_seed(0)
    x, W, b = torch.randn(1, 20, device=device), torch.randn(20, 32, device=device), torch.zeros(32, device=device)
    plain = topk_encode(x, W, b, 4)
    with torch.autocast(device, torch.bfloat16):
        again, codes = topk_encode(x, W, b, 4), threshold_encode(x, W, b, 3.0)
    assert torch.equal(plain[0], again[0])
    assert torch.equal(codes.values, threshold_encode(x, W, b, 3.0).values)


def test_an_index_outside_shows_as_nan():
    out = sparse_decode(torch.ones(2, 2, device=device), *decoder([[0, 1], [2, 3]]))
    assert out.isfinite().all()
    from attlas.kernels.sparse_decode import decode_rows, gather_dot

    indices, W = decoder([[0, 1], [2, 4]])
    assert decode_rows(torch.ones(2, 2, device=device), indices, W).isnan().all(1).tolist() == [False, True]
    assert gather_dot(torch.ones(2, 5, device=device), indices, W).isnan().tolist() == [[False, False], [False, True]]


def decoder(indices):
    return torch.tensor(indices, device=device), torch.randn(4, 5, device=device)


@pytest.mark.parametrize("tiles", [None, (3, 40)])
def test_threshold(tiles):
    from attlas.kernels.threshold_encode_triton import threshold_triton

    torch.manual_seed(0)
    x, W, b = torch.randn(5, 12, device=device), torch.randn(12, 70, device=device), torch.randn(70, device=device)
    limit = torch.rand(70, device=device) * 3
    limit[5], limit[6], limit[40:56] = float("nan"), -float("inf"), float("inf")
    values, indices, counts = threshold_triton(x, W, b, limit, None, tiles and chunks(*tiles))
    pre = x @ W + b
    row, feature = (~(pre <= limit)).nonzero().unbind(1)
    assert torch.equal(counts.long(), torch.bincount(row, minlength=5))
    assert counts.dtype == torch.int32
    assert torch.equal(indices, feature)
    torch.testing.assert_close(values, pre[row, feature])
    with pytest.raises(KernelError, match="capacity"):
        threshold_encode(x, W, b, limit, capacity=3)


def test_batch_topk():
    torch.manual_seed(0)
    x, W, b = torch.randn(4, 8, device=device), torch.randn(8, 40, device=device), torch.randn(40, device=device)
    x[2] *= 20  # one row takes far more than its share
    values, indices, threshold = batch_topk_encode(x, W, b, 3, k_row=12)
    pre = (x @ W + b).relu()
    kept = pre.flatten().topk(12)
    expected = torch.zeros_like(pre).flatten().index_copy(0, kept.indices, kept.values).view_as(pre)
    torch.testing.assert_close(torch.zeros_like(pre).scatter(1, indices, values), expected)
    torch.testing.assert_close(threshold, kept.values.min())


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


def closed(kind, batch, T, S):
    """A mask: padding of the first keys, random ones for each head and query, or additive; some query has no key."""
    if kind == "padding":
        return (torch.arange(S) >= torch.tensor([[3], [0]])[:batch])[:, None, None]
    free = torch.rand(batch, 2, T, S) < 0.7
    free[0, 1, T // 2] = False
    if kind == "bool":
        return free
    least = torch.where(torch.rand(T, S) < 0.5, -float("inf"), torch.finfo(torch.float32).min)  # both are written
    return torch.where(free[:, :1], torch.randn(T, S), least).index_fill(3, torch.tensor([1]), -50.0)


@pytest.mark.parametrize(
    ("T", "S", "causal", "sliding_window", "e", "windows", "mask", "tops", "softcap"),
    [
        (17, 17, True, None, 16, (3, 8), None, (1, 3), None),
        (5, 19, True, None, 20, (1,), "padding", (2, 20), None),
        (35, 35, False, None, 64, (1, 2, 5, 3), None, (), None),  # most blocks of keys are beyond every window
        (20, 50, True, None, 4, (17,), "additive", (), None),
        (1, 1, True, None, 256, (3, 8), None, (1, 2), 3.0),
        (33, 36, True, 5, 4, (3, 8), None, (2,), None),
        (16, 19, False, 12, 96, (2,), "bool", (9, 1, 4, 2), None),
        (18, 50, False, None, 80, (2,), "additive", (), 4.0),  # image patches, or a cross attention
    ],
)
def test_stats(T, S, causal, sliding_window, e, windows, mask, tops, softcap):
    torch.manual_seed(T)
    batch = 2 if T == 5 else 1  # the interpreter is slow; one case holds the batch's strides to account
    q, k = torch.randn(batch, 2, T, e) * 12 / e**0.5, torch.randn(batch, 1, S, e)
    tokens = torch.randint(0, 4, (batch, S)) if mask != "additive" else None
    rule = AttentionRule(causal, sliding_window, softcap=softcap)
    mask = mask and closed(mask, batch, T, S)
    column = T in (5, 18, 17)
    moved = [None if t is None else t.to(device) for t in (mask, tokens)]
    options = {"window": windows, "top_k": tops or None, "column": column}
    ours = attention_stats(q.to(device), k.to(device), rule, mask=moved[0], token_ids=moved[1], **options)
    plain = _stats_torch(q.double(), k.double(), rule, mask, tokens, windows, tops, column)
    names = [
        *_PLAIN,
        *(("induction", "duplicate") if tokens is not None else ()),
        *(("column_mass",) if column else ()),
    ]
    found = {name: (getattr(ours, name), getattr(plain, name)) for name in names}
    found |= {f"window {w}": (ours.window_masses[w], plain.window_masses[w]) for w in windows}
    found |= {f"top {n}": (ours.top_k_masses[n], plain.top_k_masses[n]) for n in tops}
    for name, (mine, exact) in found.items():
        torch.testing.assert_close(mine.cpu().double(), exact.double(), atol=2e-5, rtol=2e-4, msg=name)
    assert (tuple(ours.window_masses), tuple(ours.top_k_masses)) == (windows, tops)


def test_stats_of_equal_huge_and_broken_logits():
    q, k = torch.zeros(1, 1, 3, 4, device=device), torch.randn(1, 1, 9, 4, device=device)
    q[0, 0, 1], k[..., 0] = torch.tensor([200.0, 0.3, 0.0, 0.0]), 6.0  # 600 on every key, and a little more
    q[0, 0, 2, 0] = float("nan")
    found = attention_stats(q, k, AttentionRule(causal=False), top_k=(4, 9))
    assert found.entropy[0, 0, 0].item() == pytest.approx(math.log(9), abs=1e-6)
    assert found.top_k_masses[4][0, 0, 0].item() == pytest.approx(4 / 9, abs=1e-6)
    assert found.top_k_masses[9][0, 0, 0].item() == pytest.approx(1, abs=1e-6)
    u = k[0, 0, :, 1].double() * 0.15
    assert found.spread[0, 0, 1].item() == pytest.approx(float((u - u.mean()).norm()), rel=1e-3)
    for broken in (found.entropy, found.top_k_masses[4], found.spread, found.log_z, found.max_weight):
        assert broken[0, 0].isnan().tolist() == [False, False, True]


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
    from attlas.kernels.block_product_triton import precision

    matmul = torch.backends.cuda.matmul
    assert precision(torch.bfloat16) == precision(torch.float32) == "ieee"
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"  # torch refuses to read allow_tf32 after this
        assert precision(torch.float32) == "tf32"
    finally:
        matmul.fp32_precision = before
