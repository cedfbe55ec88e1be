"""What EntropyTracker costs a training loop at every=50, spectral norms and bounds included.

Two copies of a model train side by side, one tracked: step for step in turn, each going first every other step, so that
noise on the machine falls on both alike. A round is 50 steps of each, one of them with a check; its overhead is the
tracked loop's time over the plain one's, less 1.

python benchmarks/tracker_overhead.py
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
from common import main

import attlas

EVERY = 50
# name → (model, batch of inputs); the smaller the step, the harder the target.
SHAPES = {"gpt2-mini, 4 × 128 tokens": ("gpt2-mini", 4, 128), "vit-mini, 32 images": ("vit-mini", 32, 0)}


def run(rounds: int = 7) -> dict:
    return {"results": [_measure(title, *shape, rounds) for title, shape in SHAPES.items()]}


def _measure(title: str, name: str, n: int, length: int, rounds: int) -> dict:
    model = attlas.load_model(name, device="cuda" if torch.cuda.is_available() else "cpu")
    tracked, plain = (copy.deepcopy(model.hf).train() for _ in range(2))
    inputs = _inputs(model, n, length)
    tracker = attlas.EntropyTracker(tracked, every=EVERY)
    step = {"tracked": _loop(tracked, inputs, tracker.step), "plain": _loop(plain, inputs, lambda **_: None)}
    for _ in range(3):
        _timed(step["plain"])
    plain_ms, check_ms, overhead = [], [], []
    for _ in range(rounds + 1):  # the first is a warm-up
        times: dict[str, list[float]] = {"tracked": [], "plain": []}
        for i in range(EVERY):
            for which in ("tracked", "plain") if i % 2 else ("plain", "tracked"):
                times[which].append(_timed(step[which]))
        plain_ms.append(statistics.median(times["plain"]) * 1e3)
        check_ms.append((times["tracked"][0] - statistics.median(times["tracked"])) * 1e3)
        overhead.append(sum(times["tracked"]) / sum(times["plain"]) - 1)
    tracker.close()
    assert tracker.summary()["checks"] == rounds + 1
    found = {"title": title, "every": EVERY, "step_ms": statistics.median(plain_ms[1:])}
    found |= {"check_ms": statistics.median(check_ms[1:]), "overhead": _spread(overhead[1:])}
    by_check = [100 * c / (EVERY * p) for c, p in zip(check_ms[1:], plain_ms[1:], strict=True)]
    found["check_percent_of_steps"] = statistics.median(by_check)
    low, middle, high = (100 * found["overhead"][key] for key in ("low", "median", "high"))
    print(
        f"\nEntropyTracker, every {EVERY}: {title}\n  step {found['step_ms']:.1f} ms, a check {found['check_ms']:.1f} ms more"
        f" ({found['check_percent_of_steps']:.2f} % of {EVERY} steps); loop {middle:+.2f} % (quartiles {low:+.2f} …"
        f" {high:+.2f} %, {rounds} rounds)",
        file=sys.stderr,
    )
    return found


def _inputs(model: attlas.HookedModel, n: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if model.cfg.family == "vit":
        pixels = torch.randn(n, 1, *model.cfg.image_size, generator=generator)
        return {"pixel_values": pixels.to(model.device), "labels": torch.zeros(n, dtype=torch.long).to(model.device)}
    ids = torch.randint(1, model.cfg.d_vocab, (n, length), generator=generator).to(model.device)
    return {"input_ids": ids, "labels": ids}


def _loop(model: torch.nn.Module, inputs: dict[str, torch.Tensor], after: Callable[..., object]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after(loss=loss)

    return step


def _timed(step: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _spread(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    n = len(ranked)
    return {"median": statistics.median(ranked), "low": ranked[n // 4], "high": ranked[-1 - n // 4]}


if __name__ == "__main__":
    main(run)
