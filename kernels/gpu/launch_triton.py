"""The step's kernels by the names of their twins in `plain`."""

from attlas.kernels.gpu.decode_triton import begin, decode_dot, segments
from attlas.kernels.gpu.dense_triton import activate, dense_backward, keep_largest, residual
from attlas.kernels.gpu.update_triton import clip_factor, columns, squares, update, update_vectors

__all__ = [
    "activate",
    "begin",
    "clip_factor",
    "columns",
    "decode_dot",
    "dense_backward",
    "keep_largest",
    "residual",
    "segments",
    "squares",
    "update",
    "update_vectors",
]
