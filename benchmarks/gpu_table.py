"""The GPU table of docs/performance.md; needs torch, triton, numpy and this checkout alone.

    PYTHONPATH=. python benchmarks/gpu_table.py > gpu_table.json

(or from an installed package). Prints device and versions, then a line a measurement; medians of CUDA events.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peaks import peaks


def rooms() -> None:
    """Make `attlas.kernels` importable from a checkout that is not installed."""
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))
    import attlas

    attlas.__path__.append(str(root))


def timed(run: Callable[[], object], repeats: int = 20) -> dict[str, float]:
    """Milliseconds by CUDA events: median, quartiles; and the allocator's peak above the start, MB."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    low, median, high = statistics.quantiles(times, n=4)
    return {"ms": median, "low": low, "high": high, "peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6}


def show(
    rows: list[dict], job: str, ours: dict[str, float], peer: str, other: dict[str, float], target: str, flops: float
) -> None:
    """A line a measurement; `flops` is what the job needs at least, for our rate."""
    ratio, rate = ours["ms"] / other["ms"], flops / ours["ms"] / 1e9
    row = {"job": job, "peer": peer, "ours": ours, "other": other, "ours_over_peer": ratio, "target": target}
    rows.append(row | {"tflops": rate})
    print(
        f"{job:44} ours {ours['ms']:8.3f} ms ({ours['low']:.3f}..{ours['high']:.3f}, {ours['peak_mb']:.0f} MB)"
        f"  {peer} {other['ms']:8.3f} ms ({other['peak_mb']:.0f} MB)  ours/peer {ratio:.2f}  target {target}"
        f"  {rate:.0f} TFLOP/s",
        file=sys.stderr,
    )


def encode_rows(rows: list[dict]) -> None:
    from attlas.kernels import topk_encode

    N, k = 8192, 32
    for D in (768, 2048, 4096):
        for F in (24576, 65536, 262144):
            x = torch.randn(N, D, device="cuda", dtype=torch.bfloat16)
            W = torch.randn(D, F, device="cuda", dtype=torch.bfloat16) / D**0.5
            b = torch.zeros(F, device="cuda", dtype=torch.bfloat16)
            gemm = timed(lambda x=x, W=W: x @ W)  # type: ignore[misc]
            check, chosen = x[:64].float() @ W.float(), {}
            # a GEMM in bfloat16 rounds its results; the choice in float32 does not, and writes twice the bytes
            for select_dtype, near in (("bfloat16", 0.05), ("float32", 1e-2)):
                encode = partial(topk_encode, x, W, b, k, select_dtype=select_dtype)  # type: ignore[arg-type]
                chosen[select_dtype] = encode()[1]
                worst = (check.gather(1, chosen[select_dtype][:64]) - check.topk(k).values).abs().max()
                assert float(worst) < near, f"encode chosen in {select_dtype} is wrong by {float(worst)}"
                job = f"encode N {N} D {D} F {F} k {k} bf16, chosen in {select_dtype}"
                target = "<= 1.15" if D >= 2048 else "<= 1.3"
                show(rows, job, timed(encode), "bf16 GEMM", gemm, target, 2.0 * N * D * F)
            differ = (chosen["float32"].sort(1).values != chosen["bfloat16"].sort(1).values).any(1)
            rows.append({"job": f"encode N {N} D {D} F {F} k {k}", "rows_that_differ": float(differ.float().mean())})
            del x, W, b, chosen, encode


def step_rows(rows: list[dict]) -> None:
    """The training step in float32, with TF32 off and on, and chosen in bfloat16, beside each peer that is installed.

    A peer's precision is the one named first: float32 or TF32.
    """
    from sae_step import contestants, step_flops

    targets = {"SAELens": "<= 0.20", "sparsify": "<= 0.67"}
    for D, F, k, N in ((768, 24576, 32, 4096), (2048, 65536, 64, 4096)):
        (_, fused), *peers = contestants(D, F, k, N, device="cuda").items()
        narrow = chosen_in_bfloat16(D, F, k, N)
        for precision in ("highest", "high", "bfloat16"):  # torch's names for float32 and TF32; ours alone is narrower
            torch.set_float32_matmul_precision("high" if precision == "bfloat16" else precision)
            kind = {"highest": "float32", "high": "TF32", "bfloat16": "TF32, ours chosen in bfloat16"}[precision]
            ours = timed(narrow if precision == "bfloat16" else fused)
            for name, peer in peers:
                job = f"step N {N} D {D} F {F} k {k} {kind}"
                show(rows, job, ours, name, timed(peer), targets.get(name, "-"), step_flops(D, F, k, N))
        torch.set_float32_matmul_precision("highest")


def chosen_in_bfloat16(D: int, F: int, k: int, N: int) -> Callable[[], object]:
    """Our step with the choice in bfloat16, on inputs like the contestants'."""
    from attlas.kernels import StepOptions, TopKStep

    x, W_dec = torch.randn(N, D, device="cuda"), torch.nn.functional.normalize(torch.randn(F, D, device="cuda"), dim=-1)
    options = StepOptions(k=k, select_dtype="bfloat16")
    step = TopKStep(W_dec.t(), torch.zeros(F, device="cuda"), W_dec, torch.zeros(D, device="cuda"), options)
    return lambda: step.step(x)


def stats_rows(rows: list[dict]) -> None:
    from attlas.kernels import AttentionRule, attention_stats

    B, H, K, T, e = 1, 32, 8, 8192, 128
    q = torch.randn(B, H, T, e, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(B, K, T, e, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    sdpa = timed(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    ours = timed(lambda: attention_stats(q, k, AttentionRule(causal=True)))
    show(rows, f"statistics T {T} H {H} K {K} e {e} bf16", ours, "SDPA forward", sdpa, "<= 1.5", B * H * T * T * e)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_table: no CUDA device here; run this on a machine with one", file=sys.stderr)
        return 2
    rooms()
    import triton

    about: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    about |= peaks()
    print(about, file=sys.stderr)
    rows: list[dict] = []
    for part in (encode_rows, step_rows, stats_rows):
        try:
            part(rows)
        except Exception as error:  # one failing part must not lose the others' numbers
            print(f"{part.__name__} failed: {error!r}", file=sys.stderr)
            rows.append({"job": part.__name__, "error": repr(error)})
    print(json.dumps({"environment": about, "rows": rows}))
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
