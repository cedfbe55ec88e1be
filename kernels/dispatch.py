"""Which implementation runs: Triton on CUDA, torch elsewhere; `ATTLAS_KERNELS=torch|triton` overrides."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from attlas.errors import KernelError

T = TypeVar("T")
_log = logging.getLogger("attlas.kernels")
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def triton_present() -> bool:
    """Whether Triton can be imported (it is found, not imported)."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton kernels run in its CPU interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def use_triton(tensor: Tensor) -> bool:
    """Decide for the device of `tensor`. float64 always takes torch: the kernels accumulate in float32."""
    choice = os.environ.get("ATTLAS_KERNELS", "auto")
    if choice not in ("auto", "torch", "triton"):
        raise KernelError(f"ATTLAS_KERNELS is '{choice}'; it must be torch, triton or auto")
    if choice == "triton":
        if not triton_present():
            raise KernelError(
                "ATTLAS_KERNELS is triton, but Triton is not installed; unset it or install attlas[triton]"
            )
        if not tensor.is_cuda and not interpreting():
            raise KernelError("ATTLAS_KERNELS is triton, but the tensors are on the CPU; set TRITON_INTERPRET=1 too")
        return tensor.dtype != torch.float64
    return choice == "auto" and tensor.is_cuda and triton_present() and tensor.dtype != torch.float64


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launch inside it: Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def no_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Products in the tensors' own type, whatever autocast is on outside."""
    return torch.autocast(tensor.device.type, enabled=False)


@functools.cache
def warn_once(message: str) -> None:
    """Log a fallback the first time it happens."""
    _log.warning(message)


def or_torch(kernel: Callable[[], T], plain: Callable[[], T]) -> T:
    """Run `kernel`; where the device has too few resources (shared memory, registers) for its tiles, `plain` instead.

    Out of memory is no such case, and is raised.
    """
    try:
        return kernel()
    except Exception as error:
        if type(error).__name__ != "OutOfResources":  # by name: Triton is not imported here
            raise
        warn_once(f"Triton: {str(error).splitlines()[0]}; torch takes over for this shape")
        return plain()


def require(condition: bool, message: str) -> None:
    """Raise KernelError with `message` unless `condition` holds."""
    if not condition:
        raise KernelError(message)


def require_like(reference: Tensor, **others: Tensor | None) -> None:
    """Check that all tensors share the float dtype and the device of `reference`."""
    require(reference.dtype in _FLOATS, f"dtype {reference.dtype} is not a float type of the kernels")
    for name, tensor in others.items():
        if tensor is None:
            continue
        require(
            tensor.dtype == reference.dtype, f"{name} is {tensor.dtype}, the input {reference.dtype}; cast one of them"
        )
        require(
            tensor.device == reference.device, f"{name} is on {tensor.device}, the input on {reference.device}; move it"
        )


def require_encoder(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None) -> None:
    """Check the shapes of an encoder: x [..., D], W_enc [D, F], b_enc [F], b_dec [D]."""
    require(
        x.dim() >= 1 and W_enc.dim() == 2, f"x {tuple(x.shape)} and W_enc {tuple(W_enc.shape)}: want [..., D], [D, F]"
    )
    D, F = W_enc.shape
    require(x.shape[-1] == D, f"x has {x.shape[-1]} columns, W_enc {D} rows")
    require(tuple(b_enc.shape) == (F,), f"b_enc has shape {tuple(b_enc.shape)}, want ({F},)")
    require(b_dec is None or tuple(b_dec.shape) == (D,), f"b_dec does not have shape ({D},)")
    require_like(x, W_enc=W_enc, b_enc=b_enc, b_dec=b_dec)
