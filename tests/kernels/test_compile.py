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
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, int]]:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "ATTLAS_KERNELS": "auto", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, str(Path(__file__).with_name("compiled.py"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if "cannot" in found:
        pytest.skip(found["cannot"])
    return found


@needs_triton
def test_nothing_spills_and_shared_memory_suffices(compiled: dict[str, dict[str, int]]) -> None:
    names = {job.split()[0] for job in compiled}
    assert names >= {*BUDGETS, "active", "decode", "gather_dot", "segment"}
    stacks = {job: found["stack"] for job, found in compiled.items() if found["stack"]}
    assert not stacks, f"registers spill: {stacks}"
    over = {job: found["shared"] for job, found in compiled.items() if found["shared"] > SHARED[job.split()[1]]}
    assert not over, f"too much shared memory: {over}"


@needs_triton
def test_products_take_tensor_cores_and_asynchronous_copies(compiled: dict[str, dict[str, int]]) -> None:
    products = {job: found for job, found in compiled.items() if job.split()[0] in ("block_product", "row", "column")}
    for job, found in products.items():
        if job.split()[2:] in (["topk", "fp32"], ["threshold", "fp32"]) or " stats fp32" in job:
            continue  # full float32 precision: there are no tensor cores for it
        assert found["HGMMA" if job.split()[1] == "90" else "HMMA"] > 0, f"{job}: no tensor cores, {found}"
        assert found["LDGSTS"] + found["UTMALDG"] > 0, f"{job}: no asynchronous copies, {found}"


@needs_triton
def test_code_stays_within_its_budget(compiled: dict[str, dict[str, int]]) -> None:
    for job, found in compiled.items():
        kernel, capability, *rest = job.split()
        if kernel in BUDGETS and capability == "90" and "bf16" in rest:
            loop, total = BUDGETS[kernel]
            assert found["loop"] <= loop, f"{job}: {found}"
            assert found["total"] <= total, f"{job}: {found}"
