"""Every Triton kernel compiles for the GPUs it is meant for, down to machine code; no GPU is needed for that.

The interpreter runs kernels as Python and would pass what the compiler refuses. In a process of its own, as Triton reads its
interpreter switch when imported. By default for sm_90 and bf16 at one head size (half a minute); with
ATTLAS_COMPILE_ALL=1 also for sm_80, fp16, float32 and other head sizes (five minutes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

COMPILE = """
import json, os, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from attlas.kernels import attention_stats_triton, sparse_decode_triton, threshold_encode_triton, topk_encode_triton
from attlas.kernels.topk_encode_triton import launch_options, precision, tile_sizes

POINTERS = {"i_ptr": "i64", "row_ptr": "i64", "offset_ptr": "i64", "list_ptr": "i64", "count_ptr": "i32", "token_ptr": "i64",
            "index_ptr": "i64", "threshold_ptr": "fp32", "value_ptr": "fp32", "logz_ptr": "fp32", "out_ptr": "fp32"}

def compiled(kernel, dtype, constants, capability, pointers={}, **options):
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + {**POINTERS, **pointers}.get(name, dtype)
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert done.asm["cubin"]
    return done.metadata.shared

torch_of = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
shared = {}
whole = bool(os.environ.get("ATTLAS_COMPILE_ALL"))
for capability in (80, 90) if whole else (90,):
    for dtype in ("bf16", "fp16", "fp32") if whole else ("bf16",):
        sizes = tile_sizes(torch_of[dtype])
        flat = {name: size for name, size in sizes.items() if name != "GROUP"}
        for way in {precision(torch_of[dtype]), "tf32"} if dtype == "fp32" else {"ieee"}:
            wide = launch_options()
            found = compiled(topk_encode_triton._append_kernel, dtype, {**sizes, "PRECISION": way}, capability, **wide)
            shared[f"append {capability} {dtype} {way}"] = found
            for write in (False, True):
                constants = {**flat, "PRECISION": way, "WRITE": write}
                counts = {"count_ptr": "i64"}
                found = compiled(threshold_encode_triton._threshold_kernel, dtype, constants, capability, counts, **wide)
                shared[f"threshold {capability} {dtype} {way} {write}"] = found
        narrow = {"out_ptr": dtype, "v_ptr": dtype}
        decode = sparse_decode_triton
        shared[f"decode {capability} {dtype}"] = max(
            compiled(decode._decode_kernel, dtype, {"BD": 1024}, capability, narrow),
            compiled(decode._gather_dot_kernel, dtype, {"BK": 16, "BD": 256}, capability, narrow),
            compiled(decode._segment_kernel, dtype, {"BP": 16, "BD": 256}, capability, narrow),
        )
        for E in (64, 128, 256) if whole else (128,):
            stats = attention_stats_triton
            sizes, stages = stats.launch_shape(torch_of[dtype], E)
            blocks = {**sizes, "CAUSAL": True}
            shared[f"stats {capability} {dtype} {E}"] = max(
                compiled(stats._row_kernel, dtype, {**blocks, "TOKENS": True, "WINDOWS": 2}, capability, **stages),
                compiled(stats._column_kernel, dtype, blocks, capability, **stages),
            )
print(json.dumps(shared))
"""


@needs_triton
def test_every_kernel_compiles_and_fits_shared_memory() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "ATTLAS_KERNELS": "auto"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shared = json.loads(done.stdout.splitlines()[-1])
    limits = {"80": 163 << 10, "90": 227 << 10}  # bytes a block may ask for
    over = {job: size for job, size in shared.items() if size > limits[job.split()[1]]}
    assert not over, f"too much shared memory: {over}"
