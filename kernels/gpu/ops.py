"""Which implementation of the step's pieces runs: Triton's kernels where `use_triton` says so, else torch."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from attlas.kernels.dispatch import use_triton
from attlas.kernels.gpu import plain


def ops_for(tensor: Tensor) -> ModuleType:
    """The module with `begin`, `decode_dot`, … for this tensor's device and type."""
    if not use_triton(tensor):
        return plain
    from attlas.kernels.gpu import launch_triton

    return launch_triton
