"""TopK, threshold and BatchTopK encode against dense float64 arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from attlas.errors import KernelError
from attlas.kernels import batch_topk_encode, sparse_decode, sparse_decode_prefixes, threshold_encode, topk_encode


def problem(N, D, F, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g, dtype=dtype) for shape in ((N, D), (D, F), (F,), (D,))]


def lowest_index_topk(pre, k):
    """Brute force: Python's sort by (value descending, index ascending)."""
    rows = [sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k] for row in pre.tolist()]
    indices = torch.tensor(rows, dtype=torch.int64).view(pre.shape[0], k)
    return pre.gather(1, indices), indices


@settings(max_examples=40, deadline=None)
@given(N=st.integers(0, 9), D=st.integers(1, 9), F=st.integers(1, 300), data=st.data())
def test_matches_brute_force(N, D, F, data):
    k = data.draw(st.integers(0, F))
    x, W, b, b_dec = problem(N, D, F)
    if data.draw(st.booleans()):  # small integers make ties everywhere
        x, W, b, b_dec = x.round(), W.round(), b.round(), b_dec.round()
    values, indices = topk_encode(x, W, b, k, b_dec=b_dec, relu=False)
    expected_values, expected = lowest_index_topk((x - b_dec) @ W + b, k)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(values, expected_values)


@pytest.mark.parametrize(("F", "k"), [(8192, 32), (20000, 5), (40000, 700)])
def test_large_widths_float32(F, k):
    x, W, b, b_dec = problem(70, 16, F, dtype=torch.float32)
    values, _ = topk_encode(x, W, b, k, b_dec=b_dec)
    torch.testing.assert_close(values, ((x - b_dec) @ W + b).topk(k).values.relu(), atol=1e-4, rtol=1e-4)


def test_ties_across_tiles():
    F, k = 40000, 6
    _, indices = topk_encode(torch.zeros(3, 2), torch.zeros(2, F), torch.zeros(F), k)
    assert indices.tolist() == [list(range(k))] * 3
    b = torch.zeros(F)
    b[[39000, 20, 17000]] = 1.0
    _, indices = topk_encode(torch.zeros(2, 2), torch.zeros(2, F), b, k)
    assert indices.tolist() == [[20, 17000, 39000, 0, 1, 2]] * 2


def test_nan_infinity_denormal():
    b = torch.tensor([1.0, math.nan, math.inf, -math.inf, 1e-40, 2e-40])
    values, indices = topk_encode(torch.zeros(1, 1), torch.zeros(1, 6), b, 6, relu=False)
    assert indices.tolist() == [[1, 2, 0, 5, 4, 3]]
    values, _ = topk_encode(torch.zeros(1, 1), torch.zeros(1, 6), b, 2)
    assert values[0, 0].isnan()
    tied = torch.cat([b, torch.ones(3)])  # NaN above, and a tie at the k-th place
    _, indices = topk_encode(torch.zeros(1, 1), torch.zeros(1, 9), tied, 4)
    assert indices.tolist() == [[1, 2, 0, 6]]


def test_leading_axes_strides_and_bf16():
    x, W, b, _ = problem(12, 5, 64)
    x3 = x.view(3, 4, 5).transpose(0, 1)
    values, indices = topk_encode(x3, W.t().contiguous().t(), b, 3)
    flat_values, flat_indices = topk_encode(x3.reshape(-1, 5), W, b, 3)
    assert values.shape == indices.shape == (4, 3, 3)
    torch.testing.assert_close(values.reshape(-1, 3), flat_values)
    assert torch.equal(indices.reshape(-1, 3), flat_indices)
    half = topk_encode(x.bfloat16(), W.bfloat16(), b.bfloat16(), 3)[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), topk_encode(x, W, b, 3)[0], atol=0.1, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_choice_in_bfloat16(dtype):
    """The set is that of a stable sort of rounded numbers; the values are those of the inputs as they are."""
    x, W, b, b_dec = (t.to(dtype) for t in problem(40, 24, 500))
    values, indices = topk_encode(x, W, b, 7, b_dec=b_dec, select_dtype="bfloat16")
    centred = (x - b_dec).double()
    coarse = centred.bfloat16().double() @ W.bfloat16().double() + b.double()
    wanted = lowest_index_topk(coarse.float().bfloat16().double(), 7)[1].sort(1).values
    agree = (indices.sort(1).values == wanted).all(1)
    # a product in float32 and one in float64 may round to different neighbours, in few rows
    assert int(agree.sum()) >= 38
    exact = (centred @ W.double() + b.double()).relu()
    near = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(values.double(), exact.gather(1, indices), atol=near, rtol=near)
    assert bool((values[:, 1:] <= values[:, :-1]).all())
    if dtype == torch.float32:  # it is another choice than the exact one somewhere, and never far below it
        best = exact.topk(7).values
        assert bool((best - exact.gather(1, indices).sort(1, descending=True).values).max() > 0)
        assert float((best - values.double()).max()) < 0.15  # the last place of bfloat16 at 16 is 0.125


def test_bad_arguments():
    x, W, b, _ = problem(3, 4, 9)
    with pytest.raises(KernelError, match=r"select_dtype is 'float16'; use float32 or bfloat16"):
        topk_encode(x, W, b, 2, select_dtype="float16")
    with pytest.raises(KernelError, match="select_dtype is 'half'"):
        batch_topk_encode(x, W, b, 2, select_dtype="half")
    x, W, b, _ = problem(2, 3, 8)
    for bad, message in [
        (lambda: topk_encode(x, W, b, 9), "k = 9"),
        (lambda: topk_encode(x, W, b, -1), "k = -1"),
        (lambda: topk_encode(x.float(), W, b, 2), "cast"),
        (lambda: topk_encode(x[:, :2], W, b, 2), "columns"),
        (lambda: topk_encode(x, W, b[:3], 2), "b_enc"),
        (lambda: threshold_encode(x, W, b, torch.zeros(3)), "threshold"),
        (lambda: threshold_encode(x, W, b, -100.0, capacity=15), "capacity of 15"),
        (lambda: sparse_decode(torch.ones(1, 1), torch.tensor([[8]]), torch.zeros(8, 3)), "outside"),
    ]:
        with pytest.raises(KernelError, match=message):
            bad()


def test_gradcheck():
    x, W, b, b_dec = (t.requires_grad_() for t in problem(4, 3, 12))
    W_dec = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)

    def reconstruct(x, W, b, b_dec, W_dec):
        return sparse_decode(*topk_encode(x, W, b, 4, b_dec=b_dec), W_dec, b_dec)

    assert torch.autograd.gradcheck(reconstruct, (x, W, b, b_dec, W_dec))
    values = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[0, 1], [5, 5], [11, 0], [7, 8]])
    decode = lambda v, W, b: sparse_decode_prefixes(v, indices, W, b, (4, 12))  # noqa: E731
    assert torch.autograd.gradcheck(decode, (values, W_dec, b_dec))


@settings(max_examples=25, deadline=None)
@given(N=st.integers(0, 8), F=st.integers(1, 200), level=st.floats(-2, 4))
def test_threshold_matches_dense(N, F, level):
    x, W, b, b_dec = problem(N, 4, F, seed=F)
    limit = level + torch.linspace(-1, 1, F, dtype=torch.float64)
    pre = (x - b_dec) @ W + b
    codes = threshold_encode(x, W, b, limit, b_dec=b_dec)
    dense = torch.where(pre > limit, pre, 0)
    torch.testing.assert_close(codes.to_dense(), dense)
    assert torch.equal(codes.counts, (pre > limit).sum(1))
    W_dec = W.t().contiguous()
    torch.testing.assert_close(codes.decode(W_dec, b_dec), dense @ W_dec + b_dec)


def test_threshold_orders_entries_over_column_tiles():
    x, W, b, _ = problem(9, 3, 40000)
    codes = threshold_encode(x, W, b, 5.0)
    rows, features = ((x @ W + b) > 5.0).nonzero().unbind(1)
    assert torch.equal(codes.rows, rows)
    assert torch.equal(codes.indices, features)


@pytest.mark.parametrize("k_row", [None, 2])
def test_batch_topk(k_row):
    x, W, b, b_dec = problem(10, 4, 50)
    x[3] *= 20  # one row takes far more than its share
    values, indices, threshold = batch_topk_encode(x, W, b, 3, b_dec=b_dec, k_row=k_row)
    pre = ((x - b_dec) @ W + b).relu()
    kept = pre.flatten().topk(30)
    dense = torch.zeros_like(pre).scatter(1, indices, values)
    expected = torch.zeros_like(pre).flatten().index_copy(0, kept.indices, kept.values).view_as(pre)
    torch.testing.assert_close(dense, expected)
    torch.testing.assert_close(threshold, kept.values.min())


class Largest(TorchDispatchMode):
    """Remember the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return out


def test_no_matrix_of_pre_activations():
    N, D, F, k = 2048, 8, 16384, 4
    x, W, b, _ = (t.requires_grad_() for t in problem(N, D, F, dtype=torch.float32))
    with Largest() as seen:
        values, indices = topk_encode(x, W, b, k)
        sparse_decode(values, indices, W.detach().t()).sum().backward()
        threshold_encode(x.detach(), W.detach(), b.detach(), 12.0)
    assert seen.elements <= 1 << 22
    assert seen.elements * 8 <= N * F
