"""Sparse decode and its backward: x̂ = Σ_j values_j·W_dec[indices_j] + b_dec (Gao et al. 2024, arXiv 2406.04093, §D).

Forward is a gather and a weighted sum. Backward touches active features alone: their pairs are sorted by feature (a
stable sort), and each feature sums its own pairs in row order, so gradients are deterministic, with no atomics.
Shapes: N rows, k active features a row, F features, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from attlas.kernels.dispatch import require, require_like, use_triton

# A gathered tile of decoder rows of this many elements stays in the second-level cache.
GATHER_ELEMENTS = 1 << 18


def sparse_decode(values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Weighted sum of decoder rows.

    Args:
        values: [..., k] activations.
        indices: [..., k] int64 features; entries with value 0 contribute nothing.
        W_dec: [F, D] decoder, a row a feature.
        b_dec: [D], or None.

    Returns:
        [..., D]. Gradients flow to values, W_dec and b_dec; rows of W_dec that no index names get zero.

    Raises:
        KernelError: shapes, dtypes or devices do not fit, or an index lies outside [0, F). On CUDA, where looking would
            wait for the device, such an index makes its row of the result NaN.

    Example:
        >>> from attlas.kernels import sparse_decode
        >>> values, indices = torch.rand(5, 3), torch.randint(16, (5, 3))  # [N, k] each
        >>> sparse_decode(values, indices, torch.randn(16, 8), torch.zeros(8)).shape  # [N, d_in]
        torch.Size([5, 8])
    """
    require(values.shape == indices.shape, f"values {tuple(values.shape)} and indices {tuple(indices.shape)} differ")
    require(W_dec.dim() == 2 and values.dim() >= 1, f"W_dec has shape {tuple(W_dec.shape)}, want [F, D]")
    require(not indices.is_floating_point(), f"indices are {indices.dtype}, want int64")
    require_like(W_dec, values=values, b_dec=b_dec)
    k, (F, D) = values.shape[-1], W_dec.shape
    if not indices.is_cuda and indices.numel():  # on CUDA this check would wait for the device
        low, high = (int(v) for v in indices.aminmax())
        require(low >= 0 and high < F, f"indices span {low}..{high}, outside of the {F} rows of W_dec")
    x_hat = _SparseDecode.apply(values.reshape(-1, k), indices.reshape(-1, k).long(), W_dec)
    x_hat = x_hat.view(*values.shape[:-1], D)
    return x_hat if b_dec is None else x_hat + b_dec


def sparse_decode_prefixes(
    values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None, widths: Sequence[int]
) -> Tensor:
    """Reconstructions of nested prefixes (Matryoshka, Bussmann et al. 2025, arXiv 2503.17547).

    `widths` ascend; prefix g uses features below widths[g]. Each pair is decoded once, into its own group, and groups are
    added up. Returns [G, ..., D].

    Example:
        >>> from attlas.kernels import sparse_decode_prefixes
        >>> values, indices = torch.rand(5, 3), torch.randint(16, (5, 3))  # [N, k] each
        >>> sparse_decode_prefixes(values, indices, torch.randn(16, 8), None, (4, 8, 16)).shape  # [widths, N, d_in]
        torch.Size([3, 5, 8])
    """
    require(len(widths) > 0 and list(widths) == sorted(set(widths)), f"widths {list(widths)} must ascend")
    require(widths[-1] <= W_dec.shape[0], f"the last width {widths[-1]} exceeds the {W_dec.shape[0]} features")
    total, parts, low = None, [], 0
    for high in widths:
        inside = (indices >= low) & (indices < high)
        part = sparse_decode(torch.where(inside, values, 0), indices.clamp(max=W_dec.shape[0] - 1), W_dec)
        total = part if total is None else total + part
        parts.append(total)
        low = high
    stacked = torch.stack(parts)
    return stacked if b_dec is None else stacked + b_dec


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_NK: Tensor, indices_NK: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values_NK, indices_NK, W_dec)
        return decode_rows(values_NK, indices_NK, W_dec)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        values_NK, indices_NK, W_dec = ctx.saved_tensors
        grad_ND = grad_ND.contiguous()
        d_values = gather_dot(grad_ND, indices_NK, W_dec) if ctx.needs_input_grad[0] else None
        d_W = None
        if ctx.needs_input_grad[2]:
            d_W = FeatureOrder(indices_NK, W_dec.shape[0]).weighted_sum(grad_ND, values_NK)
        return d_values, None, d_W


def _kernels() -> ModuleType:
    from attlas.kernels import sparse_decode_triton

    return sparse_decode_triton


def decode_rows(values_NK: Tensor, indices_NK: Tensor, W_FD: Tensor) -> Tensor:
    """Σ_k values·W[indices]: [N, D], no autograd."""
    N, k = values_NK.shape
    if N == 0 or k == 0:
        return W_FD.new_zeros(N, W_FD.shape[1])
    if use_triton(W_FD):
        decoded: Tensor = _kernels().decode_rows_triton(values_NK, indices_NK, W_FD)
        return decoded
    dtype = W_FD.dtype if W_FD.dtype in (torch.float32, torch.float64) else torch.float32
    out = nnf.embedding_bag(
        indices_NK, W_FD.contiguous().to(dtype), per_sample_weights=values_NK.contiguous().to(dtype), mode="sum"
    )
    return out.to(W_FD.dtype)


def gather_dot(grad_ND: Tensor, indices_NK: Tensor, W_FD: Tensor) -> Tensor:
    """grad_n · W[indices_nk]: [N, k], in row tiles whose gathered rows stay in cache."""
    N, k = indices_NK.shape
    D = W_FD.shape[1]
    out = W_FD.new_zeros(N, k)
    if N == 0 or k == 0:
        return out
    if use_triton(W_FD):
        dots: Tensor = _kernels().gather_dot_triton(grad_ND, indices_NK, W_FD)
        return dots
    rows = max(1, GATHER_ELEMENTS // max(1, k * D))
    for start in range(0, N, rows):
        tile = slice(start, min(N, start + rows))
        gathered = W_FD.index_select(0, indices_NK[tile].reshape(-1)).view(-1, k, D)
        out[tile] = torch.bmm(gathered, grad_ND[tile].unsqueeze(-1)).squeeze(-1)
    return out


class FeatureOrder:
    """The N·k pairs (row, feature) sorted by feature, for sums that are deterministic and touch active rows alone."""

    def __init__(self, indices_NK: Tensor, n_features: int) -> None:
        self.n_features = n_features
        self.k = max(1, indices_NK.shape[-1])
        flat = indices_NK.reshape(-1)
        narrow = flat.to(torch.int32) if flat.is_cuda or n_features > 32767 else flat.to(torch.int16)
        sorted_features, self.order = torch.sort(narrow, stable=True)
        self.rows = self.order // self.k
        edges = torch.arange(
            n_features + 1, device=flat.device, dtype=narrow.dtype if n_features < 32767 else torch.int32
        )
        self.offsets = torch.searchsorted(sorted_features, edges)  # [F + 1]

    @property
    def counts(self) -> Tensor:
        """How many pairs each feature has: [F]."""
        return self.offsets.diff()

    def weighted_sum(self, source_ND: Tensor, weights_NK: Tensor) -> Tensor:
        """For each feature, Σ over its pairs of weight·source[row]: [F, D]; zero where a feature has none."""
        ((_, sums),) = self.weighted_sums(source_ND, weights_NK, self.n_features)
        return sums

    def weighted_sums(
        self, source_ND: Tensor, weights_NK: Tensor, height: int, features: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """`weighted_sum`, `height` features at a time, so that a sum is used while it is in cache.

        `features` [M], ascending, leaves out the others, which must have no pairs. Yields (places among the features, their
        sums [≤ height, D]).
        """
        M = self.n_features if features is None else features.numel()
        offsets = self.offsets if features is None else torch.cat([self.offsets[features], self.offsets[-1:]])
        if self.order.numel() == 0:
            yield slice(0, M), source_ND.new_zeros(M, source_ND.shape[1])
            return
        weights = weights_NK.reshape(-1).index_select(0, self.order)
        if use_triton(source_ND):
            yield slice(0, M), _kernels().segment_sum_triton(source_ND, self.rows, weights, offsets)
            return
        dtype = source_ND.dtype if source_ND.dtype in (torch.float32, torch.float64) else torch.float32
        source, weights = source_ND.contiguous().to(dtype), weights.to(dtype)
        starts = [*range(0, M, height), M]
        for (start, stop), (low, high) in zip(pairwise(starts), pairwise(offsets[starts].tolist()), strict=True):
            sums = nnf.embedding_bag(
                self.rows[low:high],
                source,
                offsets[start : stop + 1] - low,
                per_sample_weights=weights[low:high],
                mode="sum",
                include_last_offset=True,
            )
            yield slice(start, stop), sums.to(source_ND.dtype)

    def sum(self, weights_NK: Tensor) -> Tensor:
        """For each feature, the sum of its weights: [F]."""
        flat = weights_NK.reshape(-1).index_select(0, self.order)
        return (
            torch.segment_reduce(flat, "sum", offsets=self.offsets, initial=0)
            if flat.numel()
            else flat.new_zeros(self.n_features)
        )
