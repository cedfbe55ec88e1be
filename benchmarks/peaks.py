"""What the device at hand can do at best: arithmetic by a large matrix product, memory by a large copy.

python benchmarks/peaks.py
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable

import torch

# Vendors' figures, dense, without sparsity: TFLOP/s by dtype (float32 with TF32 tensor cores off), and GB/s.
DATASHEET = {
    "H100": {"float32": 67.0, "bfloat16": 989.0, "gbytes_per_s": 3350.0},
    "H200": {"float32": 67.0, "bfloat16": 989.0, "gbytes_per_s": 4800.0},
    "A100": {"float32": 19.5, "bfloat16": 312.0, "gbytes_per_s": 2039.0},
}

# Rows of the square matrices that are multiplied, on a GPU and elsewhere.
SIZES = {True: (4096, 8192, 12288), False: (1536, 2048, 2560)}


def seconds(run: Callable[[], object], cuda: bool) -> float:
    """Wall seconds of one call, with the device's work done before and after."""
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _best(run: Callable[[], object], cuda: bool, repeats: int = 15) -> float:
    """Least seconds of one call, after a warm-up."""
    run()
    return min(seconds(run, cuda) for _ in range(repeats))


@functools.cache
def flops_per_s(dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of a square matrix product: 2·n³ over the least time of 15, the best of three sizes."""
    cuda = torch.cuda.is_available()
    best = 0.0
    for n in SIZES[cuda]:
        a, b = (torch.randn(n, n, device="cuda" if cuda else "cpu").to(dtype) for _ in range(2))
        best = max(best, 2 * n**3 / _best(functools.partial(torch.mm, a, b), cuda))
    return best


@functools.cache
def bytes_per_s() -> float:
    """Bytes/s of a copy: one read and one write of 1 GiB (GPU) or 256 MiB, larger than any cache."""
    cuda = torch.cuda.is_available()
    source = torch.ones((1 << 28) if cuda else (1 << 26), device="cuda" if cuda else "cpu")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _best(lambda: target.copy_(source), cuda)


def peaks() -> dict[str, object]:
    """Measured peaks of this device; the vendor's where the device is known."""
    found: dict[str, object] = {
        "gflops_float32": flops_per_s() / 1e9,
        "gbytes_per_s": bytes_per_s() / 1e9,
    }
    if torch.cuda.is_available():
        found["gflops_bfloat16"] = flops_per_s(torch.bfloat16) / 1e9
        name = torch.cuda.get_device_name()
        found["datasheet"] = next((sheet for part, sheet in DATASHEET.items() if part in name), None)
    return found


if __name__ == "__main__":
    print(json.dumps(peaks(), indent=2), file=sys.stdout)
