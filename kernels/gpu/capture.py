"""The step as one CUDA graph: recorded once, then replayed by a single call, so that the host is not in the way.

A recording holds addresses, so all that a step reads and writes lies in buffers that stay, and what changes from step to
step comes through them. A new batch size, more dead features or a wider choice of rows is another key, and is recorded anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Protocol

import torch

_log = logging.getLogger("attlas.kernels")
WARM_UP = 3
"""Steps taken as they are before the recording: kernels are compiled, and libraries take their workspaces."""


class Recorded(Protocol):
    """What replays."""

    def replay(self) -> None: ...


def record(body: Callable[[], None]) -> Recorded:
    """A CUDA graph of what `body` launches; recording it does not run it."""
    graph = torch.cuda.CUDAGraph()
    # of this thread: another one may capture activations meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        body()
    return graph


class CapturedStep:
    """Runs a step's body: as it is for some steps, then as a recorded graph.

    Args:
        on: False always runs it as it is.
        recorder: makes a recording of a body; the default makes a CUDA graph.

    Example:
        >>> from attlas.kernels.gpu import CapturedStep
        >>> captured, seen = CapturedStep(on=False), []
        >>> captured.run("key", lambda: seen.append(1))
        >>> seen, captured.n_replayed
        ([1], 0)
    """

    def __init__(self, on: bool, recorder: Callable[[Callable[[], None]], Recorded] = record) -> None:
        self.on, self._recorder = on, recorder
        self.n_replayed = 0
        self._key: Hashable = None
        self._seen = 0
        self._graph: Recorded | None = None

    def run(self, key: Hashable, body: Callable[[], None]) -> None:
        """One step. Where the recording fails, this step and all later ones run as they are, and that is logged once."""
        if key != self._key:
            self._key, self._seen, self._graph = key, 0, None
        self._seen += 1
        if self.on and self._graph is None and self._seen > WARM_UP:
            try:
                self._graph = self._recorder(body)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.on = False
                _log.warning("no CUDA graph of the training step (%s); it runs without", str(error).splitlines()[0])
        if self._graph is None:
            return body()
        self._graph.replay()
        self.n_replayed += 1
