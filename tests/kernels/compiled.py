"""Compiles the Triton kernels as they are launched, for a GPU that need not be here: see test_compile.py.

The functions that launch are run on meta tensors of true sizes, and each launch is caught: kernel, arguments, blocks, warps.
What Triton would specialise on (alignment to 16, ones) is specialised on, so this is the binary that a GPU would run.
Prints one JSON object, launch → registers, spilled bytes, shared memory, instructions by class. A process of its own: Triton
reads its interpreter switch when imported.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parent))
from traced import Traced, steps_of

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    **{torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"},
    **{torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8", torch.bool: "i1"},
}
PRODUCTS = ("HGMMA", "HMMA")
"""On tensor cores, of sm_90 and before it."""
STEP_KERNELS = ("_decode_dot_kernel", "_row_update_kernel")
"""Of the training step, what is compiled in any case; the others with ATTLAS_COMPILE_ALL."""
COPIES = ("LDGSTS", "UTMALDG")
"""Asynchronous, to shared memory."""
launches: list[tuple[JITFunction, dict, dict]] = []


def catch(self, *args, grid=None, warmup=None, **given) -> None:
    """In place of `JITFunction.run`: what would be launched."""
    options = {name: given.pop(name) for name in ("num_warps", "num_stages") if name in given}
    arguments = dict(zip(self.arg_names, args, strict=False)) | given
    launches.append((self, arguments, options))


def source(kernel: JITFunction, arguments: dict) -> ASTSource:
    """Signature, constants and alignment, as a launch with these arguments would specialise."""
    signature, constants, attributes = {}, {}, {}
    for at, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or isinstance(value, bool) or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(at,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            attributes[(at,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def report(kernel: JITFunction, arguments: dict, options: dict, capability: int) -> dict[str, int]:
    """Compile, and read what came of it."""
    done = triton.compile(source(kernel, arguments), target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", "--dump-sass", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {"shared": done.metadata.shared, "warps": options.get("num_warps", 4)}
    found["registers"], found["stack"] = map(int, re.search(r"REG:(\d+) STACK:(\d+)", said).groups())
    return found | instructions(said)


def instructions(sass: str) -> dict[str, int]:
    """Instructions in all, in the loop of matrix products (the longest loop else), and of each class that tells."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)[^;]*);", sass)
    place = {int(address, 16): i for i, (address, _, _) in enumerate(lines)}
    loops: list[tuple[bool, int]] = [(False, 0)]
    for i, (address, text, name) in enumerate(lines):
        target = re.findall(r"0x([0-9a-f]+)", text) if name == "BRA" else []
        if target and int(target[-1], 16) < int(address, 16):
            inside = lines[place[int(target[-1], 16)] : i + 1]
            loops.append((any(name in PRODUCTS for _, _, name in inside), len(inside)))
    classes = collections.Counter(name for _, _, name in lines)
    return {"total": len(lines), "loop": max(loops)[1], **{name: classes[name] for name in (*PRODUCTS, *COPIES)}}


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def encode_jobs(dtype: torch.dtype, grid: torch.dtype, F: int) -> None:
    from attlas.kernels.topk_encode_triton import select_triton

    N, D = 8192, 768
    select_triton(meta(N, D, dtype=dtype), meta(F, D, dtype=dtype).t(), meta(F, dtype=dtype), 32, grid)


def threshold_jobs(dtype: torch.dtype) -> None:
    from attlas.kernels.threshold_encode_triton import threshold_triton

    N, D, F = 8192, 768, 24576
    W, b, limit = meta(F, D, dtype=dtype).t(), meta(F, dtype=dtype), meta(F, dtype=torch.float32)
    threshold_triton(meta(N, D, dtype=dtype), W, b, limit, None)


def decode_jobs(dtype: torch.dtype) -> None:
    from attlas.kernels import sparse_decode_triton as decode

    N, D, F, k = 4096, 768, 24576, 32
    values, indices = meta(N, k, dtype=dtype), meta(N, k, dtype=torch.int64)
    x, W = meta(N, D, dtype=dtype), meta(F, D, dtype=dtype)
    decode.decode_rows_triton(values, indices, W)
    decode.gather_dot_triton(x, indices, W)
    offsets = meta(F + 1, dtype=torch.int64)
    decode.segment_sum_triton(x, meta(N * k, dtype=torch.int64), meta(N * k, dtype=dtype), offsets)


def stats_jobs(dtype: torch.dtype, e: int) -> None:
    from attlas.kernels import AttentionRule
    from attlas.kernels.attention_stats_triton import attention_stats_triton

    q, k = meta(1, 32, 8192, e, dtype=dtype), meta(1, 8, 8192, e, dtype=dtype)
    rule, tokens = AttentionRule(causal=True), meta(1, 8192, dtype=torch.int64)
    attention_stats_triton(q, k, rule, None, None, (8,), (), False)
    attention_stats_triton(q, k, rule, meta(1, 1, 1, 8192, dtype=torch.bool), tokens, (8, 64), (1, 4, 16), True)


def step_jobs(arch: str, precision: str, *, clip: float | None = None) -> None:
    steps_of(arch, precision, 4096, 768, 24576, 32, aux=arch == "topk", clip=clip)[1]()


def traces() -> dict[str, dict[str, int]]:
    """Of every architecture's step at N 4096, D 768, F 24,576, k 32: launches, waits, and peak bytes it makes."""
    found = {}
    more = ("batchtopk", "matryoshka", "standard", "gated") if os.environ.get("ATTLAS_COMPILE_ALL") else ()
    for arch in ("topk", "topk aux", "jumprelu", *more):
        clip = 1.0 if arch in ("standard", "jumprelu", "gated") else None
        step, take = steps_of(arch.split()[0], "bfloat16", 4096, 768, 24576, 32, aux="aux" in arch, clip=clip)
        take()  # buffers
        launched: list[str] = []  # names alone: arguments would be kept alive
        JITFunction.run = lambda self, *args, to=launched, **given: to.append(self.fn.__name__)  # type: ignore[method-assign]
        with Traced() as seen:
            take()
        found[arch] = {
            "launches": len(launched) + len(seen.operations), "triton": len(launched), "waits": seen.waits,
            "peak": seen.peak, "held": sum(t.nbytes for t in vars(step).values() if isinstance(t, torch.Tensor)),
        }  # fmt: skip
        if os.environ.get("ATTLAS_COMPILE_ALL"):
            print(arch, found[arch], collections.Counter(seen.operations), file=sys.stderr)
    return found


def jobs(whole: bool) -> list[tuple[str, Callable[[], None]]]:
    """What is launched, by name."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    found = [
        ("topk bf16", lambda: encode_jobs(bf16, bf16, 24576)),
        ("topk fp32 on bf16", lambda: encode_jobs(fp32, bf16, 262144)),
        ("threshold bf16", lambda: threshold_jobs(bf16)),
        ("stats bf16 128", lambda: stats_jobs(bf16, 128)),
        ("step topk bf16", lambda: step_jobs("topk", "bfloat16")),
    ]
    if whole:
        found += [
            ("topk fp32", lambda: encode_jobs(fp32, fp32, 24576)),
            ("topk fp16 on fp32", lambda: encode_jobs(fp16, fp32, 24576)),
            ("threshold fp32", lambda: threshold_jobs(fp32)),
            ("decode fp32", lambda: decode_jobs(fp32)),
            ("decode bf16", lambda: decode_jobs(bf16)),
            ("step topk fp32", lambda: step_jobs("topk", "float32", clip=1.0)),
            *((f"step {a} bf16", partial(step_jobs, a, "bfloat16")) for a in ("matryoshka", "standard", "gated")),
            ("step jumprelu bf16", lambda: step_jobs("jumprelu", "bfloat16", clip=1.0)),
            *((f"stats {TYPES[t]} {e}", partial(stats_jobs, t, e)) for t in (bf16, fp32) for e in (64, 128, 256)),
        ]
    return found


def main() -> None:
    if not all((TOOLS / tool).exists() for tool in ("ptxas", "cuobjdump")):
        print(json.dumps({"cannot": f"this Triton brings no NVIDIA tools in {TOOLS}"}))
        return
    whole = bool(os.environ.get("ATTLAS_COMPILE_ALL"))
    JITFunction.run = catch  # type: ignore[method-assign]
    torch.Tensor.__int__ = lambda self: 16  # type: ignore[method-assign]  # a size read back from the device
    for module in ("attlas.saes.training.fused", "attlas.kernels.gpu.ops"):
        importlib.import_module(module)
    for name, module in list(sys.modules.items()):  # meta tensors take the path that a GPU's would
        if name.startswith("attlas.") and hasattr(module, "use_triton"):
            module.use_triton = lambda tensor: True
    found: dict[str, dict] = {}
    seen = set()
    for job, run in jobs(whole):
        launches.clear()
        run()
        for kernel, arguments, options in launches:
            part = source(kernel, arguments)
            key = (kernel.fn.__name__, str(part.signature), str(part.constants), str(part.attrs), str(options))
            if key in seen:
                continue
            seen.add(key)
            if not whole and job.startswith("step") and kernel.fn.__name__ not in STEP_KERNELS:
                continue
            for capability in (80, 90) if whole else (90,):
                name = f"{kernel.fn.__name__.strip('_').removesuffix('_kernel')} {capability} {job}"
                name += f" #{sum(other.startswith(name) for other in found)}"
                found[name] = report(kernel, arguments, options, capability)
    print(json.dumps({"kernels": found, "traces": traces()}))


if __name__ == "__main__":
    main()
