"""What a training step's products are computed in, and which devices can."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from attlas.errors import ConfigError

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
NEEDS = (8, 0)
"""Compute capability from which on a GPU has products in TF32 and bfloat16."""


def resolve_precision(name: str, device: torch.device) -> Precision:
    """The precision that `name` means on a device; "auto" is bfloat16 on a CUDA device that has it, else float32.

    Raises:
        ConfigError: the name is unknown, or the device lacks it.

    Example:
        >>> from attlas.kernels.gpu import resolve_precision
        >>> resolve_precision("auto", torch.device("cpu"))
        'float32'
    """
    if name not in ("auto", *PRECISIONS):
        raise ConfigError(f"precision={name} is unknown; use auto, {', '.join(PRECISIONS)}")
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= NEEDS
    if name == "auto":
        return "bfloat16" if capable else "float32"
    if name == "float32" or capable:
        return name  # type: ignore[return-value]
    if device.type == "cpu" and name == "bfloat16":
        return "bfloat16"  # rounded as on a GPU and multiplied in float32: slower, for checks
    raise ConfigError(f"precision={name} needs a CUDA GPU of compute capability 8.0; on '{device}' use auto or float32")


@contextlib.contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """float32 products in TF32, or in full float32, whatever is set outside; autocast off."""
    matmul = torch.backends.cuda.matmul
    switch, on, off = ("fp32_precision", "tf32", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", 1, 0)
    before = getattr(matmul, switch)
    setattr(matmul, switch, on if precision == "tf32" else off)
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        setattr(matmul, switch, before)


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a·b in `dtype`; 16-bit inputs are multiplied exactly and summed in float32, on a CPU too."""
    if a.dtype == torch.bfloat16 and not (a.is_cuda or a.is_meta):
        return (a.float() @ b.float()).to(dtype)
    return (a @ b).to(dtype)
