"""What a training loop waits for: seconds in the data, the model and the autoencoders, each counted once.

Times are the host's. On a GPU work goes on after a call returns, and what waits for it (a finite check, a logged number) is
charged with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PARTS = ("data", "model", "sae")


class Clock:
    """Time by part. Parts may nest; the inner one counts, and the outer one goes on after it.

    Example:
        >>> from attlas.saes.training.clock import Clock
        >>> clock = Clock()
        >>> with clock.on("data"), clock.on("model"):
        ...     pass
        >>> sorted(clock.shares())
        ['data_fraction', 'model_fraction', 'sae_fraction']
    """

    def __init__(self) -> None:
        self.restart()
        self._running: list[str] = []

    def restart(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._start = self._last = time.perf_counter()

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count what is inside for this part."""
        self._charge()
        self._running.append(part)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def shares(self) -> dict[str, float]:
        """Fractions of the time since the last `restart`; what is left went into logging and checkpoints."""
        self._charge()
        whole = max(self._last - self._start, 1e-9)
        return {f"{part}_fraction": seconds / whole for part, seconds in self._seconds.items()}

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._running:
            self._seconds[self._running[-1]] += now - self._last
        self._last = now
