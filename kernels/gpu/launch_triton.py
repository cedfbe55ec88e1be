"""The step's kernels by the names of their twins in `plain`."""

from __future__ import annotations

from torch import Tensor

from attlas.kernels.dispatch import or_torch
from attlas.kernels.gpu import plain
from attlas.kernels.gpu.decode_triton import begin, decode_dot, segments
from attlas.kernels.gpu.dense_triton import activate, dense_backward, keep_largest, residual
from attlas.kernels.gpu.update_triton import clip_factor, columns, squares, update, update_vectors
from attlas.kernels.topk_encode import LARGEST_K
from attlas.kernels.topk_encode_triton import best_of_rows, evaluate_triton

__all__ = [
    "activate",
    "begin",
    "choose",
    "clip_factor",
    "columns",
    "decode_dot",
    "dense_backward",
    "evaluate",
    "keep_largest",
    "residual",
    "segments",
    "squares",
    "update",
    "update_vectors",
]


def choose(narrow: Tensor, encoder: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As plain.choose, which does it for more than LARGEST_K."""
    if k > LARGEST_K:
        return plain.choose(narrow, encoder, b_enc, k)

    def kernel() -> tuple[Tensor, Tensor]:
        found = best_of_rows(narrow, encoder.t(), b_enc, k, narrow.dtype)
        return found.best, found.index

    return or_torch(kernel, lambda: plain.choose(narrow, encoder, b_enc, k))


def evaluate(centred: Tensor, encoder: Tensor, b_enc: Tensor, index: Tensor) -> Tensor:
    """As plain.evaluate."""
    return evaluate_triton(centred, encoder.t(), b_enc, index)
