"""A busy machine: the same contestants beside processes that spin, in rounds of idle and busy in turn."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from peaks import seconds


@dataclass(frozen=True)
class BusyTiming:
    """Wall seconds of one contestant, medians over rounds; ratios are medians of ratios within a round."""

    name: str
    idle: float
    busy: float
    slowdown: float
    """busy / idle."""
    idle_ratio: float
    """Its time divided by ours, idle."""
    busy_ratio: float
    """Its time divided by ours, busy."""


class Spinners:
    """n processes that do nothing but take processor time, while they are let."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __enter__(self) -> Spinners:
        self.processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(self.n)]
        self.pause()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def spin(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)
        time.sleep(0.05)


def asked(argv: list[str] | None = None) -> int:
    """The number behind --busy; 0 without it."""
    words = sys.argv if argv is None else argv
    return int(words[words.index("--busy") + 1]) if "--busy" in words else 0


def compare_busy(contestants: dict[str, Callable[[], object]], n: int, rounds: int = 7) -> list[BusyTiming]:
    """Time the contestants, ours first: in every round each idle, then each beside n spinning processes."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    with Spinners(n) as spinners:
        for run in contestants.values():
            seconds(run, False)
        for _ in range(rounds):
            idle = {name: seconds(run, False) for name, run in contestants.items()}
            spinners.spin()
            for name, run in contestants.items():
                times[name].append((idle[name], seconds(run, False)))
            spinners.pause()
    ours = next(iter(times.values()))
    middle = statistics.median
    return [
        BusyTiming(
            name,
            middle(idle for idle, _ in t),
            middle(busy for _, busy in t),
            middle(busy / idle for idle, busy in t),
            middle(idle / our for (idle, _), (our, _) in zip(t, ours, strict=True)),
            middle(busy / our for (_, busy), (_, our) in zip(t, ours, strict=True)),
        )
        for name, t in times.items()
    ]


def report_busy(title: str, timings: list[BusyTiming], n: int) -> dict:
    """Print a table on stderr and return the numbers."""
    print(f"\n{title}: idle, and beside {n} spinning processes", file=sys.stderr)
    print(f"  {'':34} {'idle':>10} {'busy':>10} {'busy/idle':>10} {'idle':>13} {'busy':>13}", file=sys.stderr)
    for t in timings:
        print(
            f"  {t.name:34} {t.idle * 1e3:7.1f} ms {t.busy * 1e3:7.1f} ms {t.slowdown:9.2f}x"
            f" {t.idle_ratio:7.2f}x ours {t.busy_ratio:7.2f}x ours",
            file=sys.stderr,
        )
    return {"title": title, "spinning": n, "rows": [vars(t) for t in timings]}
