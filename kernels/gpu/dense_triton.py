"""Triton: what lies between the products of the dense architectures and of AuxK, element by element and column by column."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.dispatch import interpreting, warn_once
from attlas.kernels.gpu import plain
from attlas.kernels.gpu.controls import AUX, PENALTY
from attlas.kernels.gpu.weights import Vectors
from attlas.kernels.topk_encode_triton import _best, _ordered

_PENALTY, _AUX = tl.constexpr(PENALTY), tl.constexpr(AUX)
KINDS = {"standard": 0, "jumprelu": 1, "gated": 2}
WIDEST = 16384
"""Columns of AuxK that one program ranks."""


@triton.jit
def _residual_kernel(
    x_hat_ptr, target_ptr, alpha_ptr, grad_ptr, loss_ptr, N, D, stride_tn, target_scale, scale,
    ALPHA: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    weight = 1.0
    if ALPHA:
        weight = tl.load(alpha_ptr)
    loss = tl.zeros((BD,), tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        target = tl.load(target_ptr + row % N * stride_tn + d, mask=d < D, other=0.0).to(tl.float32)
        x_hat = tl.load(x_hat_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        error = x_hat - target * target_scale
        loss += error * error
        tl.store(grad_ptr + row * D + d, error * scale * weight, mask=d < D)
    tl.store(loss_ptr + row, tl.sum(loss, axis=0) * weight)


def residual(
    x_hat: Tensor, target: Tensor, target_scale: float, alpha: Tensor | None, grads: Tensor, losses: Tensor
) -> None:
    """As plain.residual."""
    (R, D), N = x_hat.shape, target.shape[0]
    BD = min(1024, max(16, triton.next_power_of_2(D)))
    _residual_kernel[(R,)](
        x_hat, target, losses if alpha is None else alpha, grads, losses, N, D, target.stride(0),
        float(target_scale), 2.0 / N, ALPHA=alpha is not None, BD=BD,
    )  # fmt: skip


@triton.jit
def _activate_kernel(u_ptr, flat_ptr, out_ptr, total, F, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = i < total
    f = i % F
    u = tl.load(u_ptr + i, mask=ok, other=0.0).to(tl.float32)
    pi = u + tl.load(flat_ptr + f, mask=ok, other=0.0)
    opened = tl.where(pi <= 0, 0.0, pi)  # NaN stays
    if KIND == 1:
        opened = tl.where(pi <= tl.load(flat_ptr + F + f, mask=ok, other=0.0), 0.0, opened)
    tl.store(out_ptr + i, opened, mask=ok)
    if KIND == 2:
        magnitude = u * tl.exp(tl.load(flat_ptr + F + f, mask=ok, other=0.0))
        magnitude += tl.load(flat_ptr + 2 * F + f, mask=ok, other=0.0)
        tl.store(out_ptr + total + i, tl.where((pi <= 0) | (magnitude <= 0), 0.0, magnitude), mask=ok)


def activate(kind: str, u: Tensor, vectors: Vectors, out: Tensor) -> None:
    """As plain.activate."""
    block = 512 if interpreting() else 2048
    _activate_kernel[(triton.cdiv(u.numel(), block),)](
        u, vectors.flat, out, u.numel(), u.shape[1], KIND=KINDS[kind], BLOCK=block
    )  # fmt: skip


@triton.jit
def _dense_backward_kernel(
    u_ptr, d_ptr, flat_ptr, grad_ptr, control_ptr, norm_ptr, pull_ptr, centre_ptr, fired_ptr, penalty_ptr,
    dead_ptr, N, F, total, inv_n, bandwidth, revival,
    KIND: tl.constexpr, DEAD: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * BF + tl.arange(0, BF)
    ok = f < F
    lam = tl.load(control_ptr + _PENALTY) * inv_n
    bias = tl.load(flat_ptr + f, mask=ok, other=0.0)
    second = tl.load(flat_ptr + F + f, mask=ok & (KIND > 0), other=0.0)
    third = tl.load(flat_ptr + 2 * F + f, mask=ok & (KIND == 2), other=0.0)
    norm = tl.load(norm_ptr + f, mask=ok & (KIND == 0), other=0.0)
    growth = tl.exp(second)
    revived = tl.zeros((BF,), tl.float32)
    weight = tl.zeros((BF,), tl.float32)
    if DEAD:
        dead = tl.load(dead_ptr + f, mask=ok, other=0)
        weight = tl.where(dead != 0, tl.load(control_ptr + _AUX) * revival * inv_n, 0.0)
    d_bias = tl.zeros((BF,), tl.float32)
    d_second = tl.zeros((BF,), tl.float32)
    d_third = tl.zeros((BF,), tl.float32)
    centre = tl.zeros((BF,), tl.float32)
    opened = tl.zeros((BF,), tl.float32)
    fired = tl.zeros((BF,), tl.int32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        at = n.to(tl.int64)[:, None] * F + f[None, :]
        both = (n < N)[:, None] & ok[None, :]
        u = tl.load(u_ptr + at, mask=both, other=0.0).to(tl.float32)
        d = tl.load(d_ptr + at, mask=both, other=0.0).to(tl.float32)
        pi = u + bias[None, :]
        above = both & ~(pi <= 0)
        if KIND == 0:
            d_u = tl.where(above, d + lam * norm[None, :], 0.0)
            opened += tl.sum(tl.where(above, pi, 0.0), axis=0)
            fires = above
            d_bias += tl.sum(d_u, axis=0)
            tl.store(d_ptr + at, d_u, mask=both)
        elif KIND == 1:
            fires = above & ~(pi <= second[None, :])
            near = both & (tl.abs(pi - second[None, :]) < bandwidth / 2)
            d_second -= tl.sum(tl.where(near, (second[None, :] * d + lam) / bandwidth, 0.0), axis=0)
            d_u = tl.where(fires, d, 0.0)
            d_bias += tl.sum(d_u, axis=0)
            tl.store(d_ptr + at, d_u, mask=both)
        else:  # d is of ReLU(pi), what follows it of the features
            d_f = tl.load(d_ptr + total + at, mask=both, other=0.0).to(tl.float32)
            fires = above & ~(u * growth[None, :] + third[None, :] <= 0)
            d_m = tl.where(fires, d_f, 0.0)
            d_pi = tl.where(above, d + lam, 0.0)
            if DEAD:
                below = both & (pi < 0)
                d_pi -= tl.where(below, weight[None, :], 0.0)
                revived += tl.sum(tl.where(below, -pi, 0.0), axis=0)
            d_u = d_m * growth[None, :] + d_pi
            opened += tl.sum(tl.where(above, pi, 0.0), axis=0)
            d_bias += tl.sum(d_pi, axis=0)
            d_second += tl.sum(d_m * u, axis=0)
            d_third += tl.sum(d_m, axis=0)
            tl.store(d_ptr + total + at, d_u, mask=both)
        centre += tl.sum(d_u, axis=0)
        fired += tl.sum(fires.to(tl.int32), axis=0)
    tl.store(grad_ptr + f, d_bias, mask=ok)
    tl.store(centre_ptr + f, centre, mask=ok)
    tl.store(fired_ptr + f, fired.to(tl.int64), mask=ok)
    if KIND == 0:
        tl.store(penalty_ptr + f, lam * opened * norm, mask=ok)
        tl.store(pull_ptr + f, tl.where(norm > 0, lam * opened / tl.where(norm > 0, norm, 1.0), 0.0), mask=ok)
    elif KIND == 1:
        tl.store(penalty_ptr + f, lam * fired.to(tl.float32), mask=ok)
        tl.store(grad_ptr + F + f, d_second, mask=ok)
    else:
        tl.store(penalty_ptr + f, lam * opened + weight * revived, mask=ok)
        tl.store(grad_ptr + F + f, d_second * growth, mask=ok)
        tl.store(grad_ptr + 2 * F + f, d_third, mask=ok)


def dense_backward(
    kind: str,
    u: Tensor,
    d_f: Tensor,
    vectors: Vectors,
    controls: Tensor,
    bandwidth: float,
    norms: Tensor | None,
    pull: Tensor | None,
    centre: Tensor,
    fired: Tensor,
    penalties: Tensor,
    dead: Tensor | None,
    revival: float,
) -> None:
    """As plain.dense_backward."""
    N, F = u.shape
    BN, BF = (16, 64) if interpreting() else (32, 64)
    _dense_backward_kernel[(triton.cdiv(F, BF),)](
        u, d_f, vectors.flat, vectors.grad, controls, centre if norms is None else norms,
        centre if pull is None else pull, centre, fired, penalties,
        fired if dead is None else dead, N, F, N * F, 1.0 / N, float(bandwidth), float(revival),
        KIND=KINDS[kind], DEAD=dead is not None, BN=BN, BF=BF,
    )  # fmt: skip


@triton.jit
def _keep_kernel(pre_ptr, b_ptr, valid_ptr, out_ptr, C, k, BC: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    ok = c < tl.minimum(tl.load(valid_ptr), C)
    pi = tl.load(pre_ptr + row * C + c, mask=ok, other=0.0).to(tl.float32)
    pi += tl.load(b_ptr + c, mask=ok, other=0.0)
    chosen, _ = _best(_ordered(pi, 0), ok, k, 0)
    tl.store(out_ptr + row * C + c, tl.where(chosen & ~(pi <= 0), pi, 0.0), mask=c < C)


def keep_largest(pre: Tensor, bias: Tensor, n_valid: Tensor, k: int, out: Tensor) -> None:
    """As plain.keep_largest, which does it where there are more columns than a program ranks."""
    N, C = pre.shape
    if C > WIDEST:
        warn_once(f"AuxK looks at {C} columns, more than {WIDEST}: torch sorts them")
        return plain.keep_largest(pre, bias, n_valid, k, out)
    BC = max(16, triton.next_power_of_2(C))
    _keep_kernel[(N,)](pre, bias, n_valid, out, C, k, BC=BC, num_warps=4 if BC <= 2048 else 8)
