"""Every Triton kernel compiles as it is launched, down to machine code, and its code is what its design promises.

No GPU is needed. The interpreter runs kernels as Python and would pass what the compiler refuses; and a kernel that computes
the right thing from spilled registers, or without tensor cores, would pass everything but this. By default for sm_90 and the
types that matter most; with ATTLAS_COMPILE_ALL=1 also for sm_80, other types and head sizes (some minutes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
SHARED = {"80": 163 << 10, "90": 227 << 10}
"""Bytes of shared memory a block may ask for, by architecture."""
BUDGETS = {
    # kernel: (instructions of the product's loop, in all), about a fifth above what Triton 3.9 makes of it for sm_90
    "block_product": (210, 1900),
    "select": (1100, 3000),
    "evaluate": (250, 450),
    "row": (1550, 3900),
    "column": (1050, 1600),
    "top": (1250, 1950),
    "decode_dot": (590, 1450),
    "row_update": (510, 900),
}


Report = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "ATTLAS_KERNELS": "auto", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, str(Path(__file__).with_name("compiled.py"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if "cannot" in found:
        pytest.skip(found["cannot"])
    return found


@pytest.fixture(scope="module")
def compiled(reports: dict[str, Report]) -> Report:
    return reports["kernels"]


@needs_triton
def test_nothing_spills_and_shared_memory_suffices(compiled: Report) -> None:
    names = {job.split()[0] for job in compiled}
    assert names >= {*BUDGETS, "active"}
    stacks = {job: found["stack"] for job, found in compiled.items() if found["stack"]}
    assert not stacks, f"registers spill: {stacks}"
    over = {job: found["shared"] for job, found in compiled.items() if found["shared"] > SHARED[job.split()[1]]}
    assert not over, f"too much shared memory: {over}"


@needs_triton
def test_products_take_tensor_cores_and_asynchronous_copies(compiled: Report) -> None:
    products = {job: found for job, found in compiled.items() if job.split()[0] in ("block_product", "row", "column")}
    for job, found in products.items():
        if job.split()[2:] in (["topk", "fp32"], ["threshold", "fp32"]) or " stats fp32" in job:
            continue  # full float32 precision: there are no tensor cores for it
        assert found["HGMMA" if job.split()[1] == "90" else "HMMA"] > 0, f"{job}: no tensor cores, {found}"
        assert found["LDGSTS"] + found["UTMALDG"] > 0, f"{job}: no asynchronous copies, {found}"


@needs_triton
def test_code_stays_within_its_budget(compiled: Report) -> None:
    for job, found in compiled.items():
        kernel, capability, *rest = job.split()
        if (
            kernel in BUDGETS and capability == "90" and "bf16" in rest and "matryoshka" not in rest
        ):  # five prefixes, unrolled
            loop, total = BUDGETS[kernel]
            assert found["loop"] <= loop, f"{job}: {found}"
            assert found["total"] <= total, f"{job}: {found}"


@needs_triton
def test_a_training_step_launches_little_and_never_waits(reports: dict[str, Report]) -> None:
    """At N 4,096, D 768, F 24,576, k 32 in bfloat16, on meta tensors: nothing is computed, everything is launched."""
    traces = reports["traces"]
    assert all(found["waits"] == 0 for found in traces.values()), traces
    assert traces["topk"]["launches"] <= 12, traces["topk"]
    assert traces["jumprelu"]["launches"] <= 16, traces["jumprelu"]  # five products of N × F, and clipping
    assert traces["topk aux"]["launches"] <= 50, traces["topk aux"]
    assert traces["topk"]["peak"] < 135e6, traces["topk"]  # the encode's workspace, and what the pairs' sort needs
    # products, their gradients, and the gradients of both matrices
    assert traces["jumprelu"]["peak"] < 2.5 * 2 * 4096 * 24576, traces["jumprelu"]
