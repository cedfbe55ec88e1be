"""TopK encode without the N×F matrix of pre-activations (Gao et al. 2024, arXiv 2406.04093).

pre = (x − b_dec)·W_enc + b_enc; the k largest of each row, by value, ties to the lower feature index. The pre-activations
exist one tile at a time, on a GPU in a workspace below 128 MB. NaN counts as larger than +inf, as in `torch.topk`: a NaN
pre-activation comes first and stays NaN through the ReLU, so a loss built on it is NaN and cannot go unseen.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from attlas.kernels.cpu.choose import select_tiles
from attlas.kernels.dispatch import no_autocast, or_torch, require, require_encoder, use_triton
from attlas.kernels.sparse_decode import FeatureOrder, decode_rows
from attlas.kernels.topk_torch import select_torch

SelectDtype = Literal["float32", "bfloat16"]
LARGEST_K = 2048
"""Most entries a row that the Triton path chooses; torch chooses more."""


def require_select_dtype(name: str) -> None:
    """Raise KernelError for a type that no choice is made in."""
    require(name in ("float32", "bfloat16"), f"select_dtype is '{name}'; use float32 or bfloat16")


def topk_encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    *,
    b_dec: Tensor | None = None,
    relu: bool = True,
    select_dtype: SelectDtype = "float32",
) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations of each row. Autocast has no effect inside.

    Args:
        x: [..., D].
        W_enc: [D, F]; any strides.
        b_enc: [F].
        k: features kept a row, 0 ≤ k ≤ F.
        b_dec: [D], taken from x first; or None.
        relu: clip values at 0. Selection is by the pre-activation, so a slot whose value is 0 still names a distinct,
            valid feature (the next by pre-activation); it adds nothing to a decode and gets no gradient.
        select_dtype: what the choice is made in. "float32" is exact up to the rounding of float32 sums (float64 for
            float64 inputs). "bfloat16" rounds x − b_dec, W_enc and then the pre-activation to bfloat16, equal ones by the
            lower index, and computes the chosen values from the unrounded inputs: the product is one that tensor cores do,
            and rows with a near tie at the k-th place may take the other feature (docs/performance.md tells how many).

    Returns:
        values [..., k], descending, and indices [..., k] int64. Autograd reaches x, W_enc, b_enc and b_dec.

    Raises:
        KernelError: k outside [0, F], an unknown select_dtype, or shapes, dtypes or devices that do not fit.

    Example:
        >>> from attlas.kernels import topk_encode
        >>> values, indices = topk_encode(torch.randn(5, 8), torch.randn(8, 16), torch.zeros(16), 3)
        >>> values.shape, indices.dtype  # [N, k]
        (torch.Size([5, 3]), torch.int64)
    """
    require_encoder(x, W_enc, b_enc, b_dec)
    require(0 <= k <= W_enc.shape[1], f"k = {k} is not within 0 and the {W_enc.shape[1]} features")
    require_select_dtype(select_dtype)
    with no_autocast(x):
        values, indices = _TopKEncode.apply(
            x.reshape(-1, x.shape[-1]), W_enc, b_enc, b_dec, k, relu, getattr(torch, select_dtype)
        )
    shape = (*x.shape[:-1], k)
    return values.view(shape), indices.view(shape)


class _TopKEncode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor | None,
        k: int,
        relu: bool,
        grid: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        values, indices = select(x_ND if b_dec is None else x_ND - b_dec, W_enc, b_enc, k, grid)
        values = torch.relu(values) if relu else values
        ctx.save_for_backward(x_ND, W_enc, b_dec, values, indices)
        ctx.relu = relu
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, W_enc, b_dec, values, indices = ctx.saved_tensors
        need_x, need_W, need_b, need_b_dec = ctx.needs_input_grad[:4]
        with no_autocast(x_ND):
            grad_NK = torch.where(values > 0, grad_NK, 0) if ctx.relu else grad_NK.contiguous()
            order = FeatureOrder(indices, W_enc.shape[1])
            d_x = decode_rows(grad_NK, indices, W_enc.t().contiguous()) if need_x else None
            d_b = order.sum(grad_NK) if need_b or need_b_dec else None
            centred = x_ND if b_dec is None else x_ND - b_dec
            d_W = order.weighted_sum(centred, grad_NK).t() if need_W else None
            # Σ_n dx_n = W_enc · Σ_n dpre_n, and b_dec enters with the opposite sign.
            d_b_dec = -(W_enc @ d_b) if need_b_dec and d_b is not None else None
        return d_x, d_W, d_b if need_b else None, d_b_dec, None, None, None


def select(
    x_ND: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    grid: torch.dtype = torch.float32,
    shadow: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Top-k pre-activations of x (already centred), before any ReLU; no autograd.

    `shadow` is x and W_enc in bfloat16, for the bfloat16 grid, where the caller keeps them.
    """
    N = x_ND.shape[0]
    if N == 0 or k == 0:
        return x_ND.new_zeros(N, k), torch.zeros(N, k, dtype=torch.int64, device=x_ND.device)
    if use_triton(x_ND) and k <= LARGEST_K:
        from attlas.kernels.topk_encode_triton import select_triton

        return or_torch(
            lambda: select_triton(x_ND, W_enc, b_enc, k, grid, shadow=shadow),
            lambda: select_torch(x_ND, W_enc, b_enc, k, grid),
        )
    if x_ND.device.type == "cpu" and grid != torch.bfloat16:
        return select_tiles(x_ND, W_enc, b_enc, k)
    return select_torch(x_ND, W_enc, b_enc, k, grid)
