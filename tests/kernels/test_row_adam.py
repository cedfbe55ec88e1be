"""Adam by tiles of rows, dense and lazy, against torch.optim.Adam on the whole matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.kernels import row_adam
from attlas.kernels.row_adam import RowAdam, RowGradient, horizon
from attlas.kernels.sparse_decode import FeatureOrder

F, D, N, K = 12, 3, 4, 2
LR, EPS = 1e-2, 1e-8


def gradient(seed, among, extra=False):
    """A gradient whose pairs name features of `among` alone."""
    g = torch.Generator().manual_seed(seed)
    among = torch.tensor(among)
    indices = among[torch.randint(len(among), (N, K), generator=g)]
    source = torch.randn(N, D, generator=g, dtype=torch.float64)
    weights = torch.randn(N, K, generator=g, dtype=torch.float64)
    more = (torch.tensor([1, 7]), torch.randn(2, D, generator=g, dtype=torch.float64)) if extra else None
    return RowGradient(FeatureOrder(indices, F), source, weights, more), (indices, source, weights, more)


def dense(parts):
    indices, source, weights, more = parts
    whole = torch.zeros(F, D, dtype=torch.float64)
    for n in range(N):
        for k in range(K):
            whole[indices[n, k]] += weights[n, k] * source[n]
    if more is not None:
        whole[more[0]] += more[1]
    return whole


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    lazy=st.booleans(),
    unit_norm=st.booleans(),
    height=st.integers(1, F + 1),
    betas=st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99), (0.99, 0.9)]),
)
def test_equal_to_torch_adam(seed, lazy, unit_norm, height, betas):
    """Three phases: some features, others for longer than momentum lasts at (0.5, 0.9), the first again."""
    start = torch.randn(F, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start /= start.norm(dim=1, keepdim=True)
    matrix, leaf = start.clone(), start.clone().requires_grad_()
    ours = RowAdam(matrix, betas, EPS, unit_norm=unit_norm, lazy=lazy)
    plain = torch.optim.Adam([leaf], lr=LR, betas=betas, eps=EPS)
    phases = [[0, 1, 2, 3]] * 5 + [[4, 5, 6]] * 70 + [[0, 3, 8]] * 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_adam, "GATHER_ELEMENTS", height * D)
        for i, among in enumerate(phases):
            given_, parts = gradient(seed + i, among, extra=i % 3 == 0)
            ours.update(given_, i, LR)
            leaf.grad = dense(parts)
            if unit_norm:
                w = leaf.detach()
                leaf.grad -= (leaf.grad * w).sum(1, keepdim=True) * w
            plain.step()
            if unit_norm:
                leaf.data /= leaf.data.norm(dim=1, keepdim=True)
    torch.testing.assert_close(matrix, leaf.detach(), atol=1e-9, rtol=1e-9)
    ours.settle(len(phases))
    state = plain.state[leaf]
    torch.testing.assert_close(ours.exp_avg, state["exp_avg"], atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(ours.exp_avg_sq, state["exp_avg_sq"], atol=1e-12, rtol=1e-9)


def test_rows_rest_when_their_momentum_has_faded():
    matrix = torch.randn(F, D, dtype=torch.float64)
    adam = RowAdam(matrix, (0.5, 0.9), EPS, lazy=True)
    touched = [adam.update(gradient(i, [0, 1] if i < 3 else [5])[0], i, LR) for i in range(80)]
    assert touched[0] <= 2
    assert max(touched) == 3  # 5, and 0 and 1 while they fade
    assert touched[3 + adam.horizon :] == [1] * (80 - 3 - adam.horizon)
    assert RowAdam(matrix, (0.5, 0.9), EPS).update(gradient(0, [5])[0], 0, LR) == F


def test_horizon_is_where_a_move_falls_below_the_resolution():
    assert horizon((0.9, 0.999), torch.float32) == 153
    fade = 0.9 / 0.999**0.5
    assert fade**153 < torch.finfo(torch.float32).eps < fade**151
    assert horizon((0.0, 0.999), torch.float32) == 0
    assert horizon((0.99, 0.9), torch.float32) > 10**12  # such momentum never fades
