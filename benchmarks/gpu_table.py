"""The GPU table of docs/performance.md; needs torch, triton, numpy and this checkout alone.

    PYTHONPATH=. python benchmarks/gpu_table.py > gpu_table.json

(or from an installed package). Prints device and versions, then a line a measurement; medians of CUDA events.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peaks import peaks

DEVICE = "cuda"
MINUTES = 24.0
"""Parts that would begin later are left out, and said to be."""
ENCODE_SHAPES = tuple((D, F) for D in (768, 2048, 4096) for F in (24576, 65536, 262144))
ENCODE_ROWS = 8192
STEP_SHAPES = ((768, 24576, 32, 4096), (2048, 65536, 64, 4096))
CHECK_SHAPE = (256, 4096, 16, 512)
STATS_SHAPES = ((2048, 64), (2048, 128), (8192, 64), (8192, 128), (16384, 128))
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "standard", "jumprelu", "gated")


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

    N, k = ENCODE_ROWS, 32
    for D, F in ENCODE_SHAPES:
        x = torch.randn(N, D, device=DEVICE, dtype=torch.bfloat16)
        W = torch.randn(D, F, device=DEVICE, dtype=torch.bfloat16) / D**0.5
        b = torch.zeros(F, device=DEVICE, dtype=torch.bfloat16)
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
    """The training step of every architecture in each precision, as a graph and launch by launch; TopK with AuxK and with
    features that fire everywhere; and the peers, each in float32, TF32 and bfloat16 autocast, named by what it truly ran in."""
    for D, F, k, N in STEP_SHAPES:
        shape, x = f"N {N} D {D} F {F} k {k}", torch.randn(N, D, device=DEVICE)
        best: dict[str, float] | None = None
        for arch in ARCHITECTURES:
            for precision in ("float32", "tf32", "bfloat16"):
                for graph in (True, False):
                    take = our_step(arch, D, F, k, x, precision, graph=graph)
                    found = timed(take)
                    best = found if arch == "topk" and precision == "bfloat16" and graph else best
                    rows.append(
                        {"job": f"step {shape}", "arch": arch, "ours": found, "precision": precision, "graph": graph}
                    )
        for name, more in {"AuxK": {"aux": F // 12}, "skewed": {"skew": 8}}.items():
            found = timed(our_step("topk", D, F, k, x, "bfloat16", **more))
            rows.append(
                {"job": f"step {shape} {name}", "arch": "topk", "ours": found, "precision": "bfloat16", "graph": True}
            )
        assert best is not None
        targets = {"SAELens": "<= 0.20", "sparsify": "<= 0.50"}
        for precision in ("float32", "TF32", "bfloat16 autocast"):
            torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
            for name, peer in peers(D, F, k, N).items():
                # sparsify's own forward pass is under bfloat16 autocast, whatever is set outside
                label = f"{precision}{', bfloat16 autocast inside' if name == 'sparsify' else ''}"
                with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled="autocast" in precision):
                    other = timed(peer)
                job = f"step {shape}, ours bfloat16, {name} {label}"
                show(rows, job, best, name, other, targets.get(name, "-"), 2.0 * N * D * F + 8.0 * N * k * D)
        torch.set_float32_matmul_precision("highest")


def peers(D: int, F: int, k: int, N: int) -> dict[str, Callable[[], object]]:
    """The other libraries' steps that are installed."""
    from sae_step import contestants

    return {name: run for name, run in contestants(D, F, k, N, device=DEVICE).items() if not name.startswith("attlas")}


def our_step(
    arch: str,
    D: int,
    F: int,
    k: int,
    x: torch.Tensor,
    precision: str,
    *,
    graph: bool = True,
    aux: int = 0,
    skew: int = 0,
) -> Callable[[], object]:
    """A step on x, with `aux` dead features, or `skew` features that fire on every token."""
    from attlas.saes import SAEConfig
    from attlas.saes.architectures import create_sae
    from attlas.saes.training.fused import gpu_step

    sae = create_sae(SAEConfig(d_in=D, d_sae=F, arch=arch, k=k))
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(F, D), dim=-1))
        sae.W_enc.copy_(sae.W_dec.t())
        sae.b_enc[:skew] = 1e3
    step = gpu_step(sae.to(DEVICE), precision=precision, clip=None, graph=graph)  # type: ignore[arg-type]
    dead = torch.arange(F, device=DEVICE) < aux
    return lambda: step.step(x, dead if aux else None, lr=1e-4, penalty=1.0, aux_columns=aux)


def correct_rows(rows: list[dict]) -> None:
    """One step of every architecture and precision against the same step in float64 on the CPU, allocator poisoned first."""
    D, F, k, N = CHECK_SHAPE
    for arch in ARCHITECTURES:
        for skew in (0, 2):
            x = torch.randn(N, D, dtype=torch.float64)
            state = torch.get_rng_state()
            for precision, most in (("float32", 1e-3), ("tf32", 3e-2), ("bfloat16", 1e-1)):
                poison = torch.full((1 << 20,), torch.nan, device=DEVICE)
                del poison
                torch.set_rng_state(state)
                ours = our_step(arch, D, F, k, x.float().to(DEVICE), precision, skew=skew)()
                torch.set_rng_state(state)
                reference = reference_loss(arch, D, F, k, x, skew)
                off = abs(float(ours.total) - reference) / reference  # type: ignore[attr-defined]
                rows.append(
                    {"job": f"correct {arch} {precision} skew {skew}", "relative_error": off, "within": off <= most}
                )
                assert off <= most, f"the loss of {arch} in {precision} is off by {off:.1e}"


def reference_loss(arch: str, D: int, F: int, k: int, x: torch.Tensor, skew: int) -> float:
    """The loss of the autograd path in float64 on the CPU, from the same random weights as `our_step`."""
    from attlas.saes import SAEConfig
    from attlas.saes.architectures import create_sae
    from attlas.saes.base import StepContext

    sae = create_sae(SAEConfig(d_in=D, d_sae=F, arch=arch, k=k))
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(F, D), dim=-1))
        sae.W_enc.copy_(sae.W_dec.t())
        sae.b_enc[:skew] = 1e3
        return float(sae.double().loss(x, StepContext()).total)


def stats_rows(rows: list[dict]) -> None:
    """Attention statistics beside SDPA's forward pass: lengths and head sizes; with padding, and with top-k masses."""
    from attlas.kernels import AttentionRule, attention_stats

    B, H, K = 1, 32, 8
    for T, e in STATS_SHAPES:
        q = torch.randn(B, H, T, e, device=DEVICE, dtype=torch.bfloat16)
        k, v = (torch.randn(B, K, T, e, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        attend = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)
        sdpa, padding = timed(attend), (torch.arange(T, device=DEVICE) > 5)[None, None, None]
        for name, more in {"": {}, ", padding": {"mask": padding}, ", top 1 and 4": {"top_k": (1, 4)}}.items():
            ours = timed(partial(attention_stats, q, k, AttentionRule(causal=True), **more))  # type: ignore[arg-type]
            target = "<= 1.0" if T >= 8192 and not name else "-"
            show(rows, f"statistics T {T} e {e} bf16{name}", ours, "SDPA forward bf16", sdpa, target, B * H * T * T * e)


def profile_rows(rows: list[dict]) -> None:
    """Kernels of a step of TopK and of JumpReLU by their time on the device."""
    from torch.profiler import ProfilerActivity, profile

    D, F, k, N = STEP_SHAPES[0]
    for arch in ("topk", "jumprelu"):
        take = our_step(arch, D, F, k, torch.randn(N, D, device=DEVICE), "bfloat16", graph=False)
        take()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (DEVICE == "cuda")]) as seen:
            for _ in range(5):
                take()
        for event in seen.key_averages():
            us = getattr(event, "self_device_time_total", 0.0)
            if us > 0:
                rows.append(
                    {"job": f"profile {arch}", "kernel": event.key[:80], "us_a_step": us / 5, "calls": event.count / 5}
                )


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
    began = time.monotonic()
    for part in (correct_rows, encode_rows, step_rows, stats_rows, profile_rows):
        if time.monotonic() - began > 60 * MINUTES:
            rows.append({"job": part.__name__, "left_out": f"{MINUTES} minutes were over"})
            continue
        try:
            part(rows)
        except Exception as error:  # one failing part must not lose the others' numbers
            print(f"{part.__name__} failed: {error!r}", file=sys.stderr)
            rows.append({"job": part.__name__, "error": repr(error)})
    print(json.dumps({"environment": about, "rows": rows}))
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
