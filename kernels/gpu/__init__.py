"""The training step as a GPU takes it: every architecture, no wait for the device, one CUDA graph; in torch for checks.

`plain` computes each piece in torch, the files named *_triton as a kernel each; `ops_for` picks. Whatever the precision,
weights, moments and sums are float32; bfloat16 keeps rounded copies of both matrices (shadows), which products and gathers
read.
"""

from __future__ import annotations

from attlas.kernels.gpu.capture import CapturedStep
from attlas.kernels.gpu.dense import GatedStep, JumpReLUDenseStep, ReLUStep
from attlas.kernels.gpu.precision import PRECISIONS, Precision, resolve_precision
from attlas.kernels.gpu.sparse import BatchTopKOnGPU, TopKOnGPU
from attlas.kernels.gpu.step import GPUStep, GPUStepResult

__all__ = [
    "PRECISIONS",
    "BatchTopKOnGPU",
    "CapturedStep",
    "GPUStep",
    "GPUStepResult",
    "GatedStep",
    "JumpReLUDenseStep",
    "Precision",
    "ReLUStep",
    "TopKOnGPU",
    "resolve_precision",
]
