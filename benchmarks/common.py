"""Paired timing: every contestant runs once a round, in turn, so that noise on the machine falls on all alike."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peaks import bytes_per_s, flops_per_s, peaks, seconds


@dataclass(frozen=True)
class Timing:
    """Wall seconds of one contestant, its slowdown against ours round by round, and the memory one run adds."""

    name: str
    median: float
    low: float
    high: float
    minimum: float
    ratio: float
    """Median over rounds of its time divided by ours."""
    peak_mb: float


class _PeakMemory:
    """Peak of resident memory above the start, sampled (CPU), or the allocator's peak (CUDA)."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.peak = cuda, 0.0

    def __enter__(self) -> _PeakMemory:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return self
        self.start, self.most, self.on = _resident(), _resident(), True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.on:
            self.most = max(self.most, _resident())
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.peak = (torch.cuda.max_memory_allocated() - self.start) / 1e6
            return
        self.on = False
        self.thread.join()
        self.peak = (self.most - self.start) / 1e6


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def compare(contestants: dict[str, Callable[[], object]], rounds: int = 7, cuda: bool = False) -> list[Timing]:
    """Time the contestants, ours first, in interleaved rounds after one warm-up each."""
    peaks = {}
    for name, run in contestants.items():
        seconds(run, cuda)
        with _PeakMemory(cuda) as memory:
            seconds(run, cuda)
        peaks[name] = memory.peak
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            times[name].append(seconds(run, cuda))
    ours = next(iter(times.values()))
    return [
        Timing(
            name,
            statistics.median(t),
            sorted(t)[len(t) // 4],
            sorted(t)[-1 - len(t) // 4],
            min(t),
            statistics.median(a / b for a, b in zip(t, ours, strict=True)),
            peaks[name],
        )
        for name, t in times.items()
    ]


def report(title: str, timings: list[Timing], flops: float | None = None, size: float | None = None) -> dict:
    """Print a table on stderr and return the numbers.

    `flops` and `size` (bytes) are what the job needs at least, whoever does it: the arithmetic of the sparse method, and
    each input, output and state read or written once. From them come rates at the least time, and their share of what a
    large float32 matrix product and a large copy reach on this device (peaks.py). A peer that does more than the job needs
    shows a low share.
    """
    print(f"\n{title}", file=sys.stderr)
    print(f"  {'':34} {'median':>10} {'quartiles':>19} {'min':>9} {'x ours':>8} {'peak':>10}", file=sys.stderr)
    rows = []
    for t in timings:
        row = asdict(t)
        rate = ""
        if flops:
            row["gflops"] = flops / t.minimum / 1e9
            row["of_peak_flops"] = flops / t.minimum / flops_per_s()
            rate += f"  {row['gflops']:5.0f} GFLOP/s ({row['of_peak_flops']:4.0%})"
        if size:
            row["gbytes_per_s"] = size / t.minimum / 1e9
            row["of_peak_bytes"] = size / t.minimum / bytes_per_s()
            rate += f"  {row['gbytes_per_s']:5.1f} GB/s ({row['of_peak_bytes']:4.0%})"
        spread = f"{t.low * 1e3:.1f}..{t.high * 1e3:.1f}"
        print(
            f"  {t.name:34} {t.median * 1e3:7.1f} ms {spread:>16} ms {t.minimum * 1e3:6.1f} ms"
            f" {t.ratio:7.2f}x {t.peak_mb:7.0f} MB{rate}",
            file=sys.stderr,
        )
        rows.append(row)
    return {"title": title, "rows": rows}


def environment() -> dict[str, object]:
    """Where the numbers come from."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__, "peaks": peaks()}


def main(run: Callable[[], dict]) -> None:
    """Run a benchmark file by itself; `--json` prints its numbers."""
    result = run() | {"environment": environment()}
    if "--json" in sys.argv:
        print(json.dumps(result))
