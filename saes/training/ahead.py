"""Capture while autoencoders train: chunks are made by a thread before they are asked for, on a GPU on a stream of their own.

A chunk is a function of its number alone, so what is trained on is the same to the bit, after an interruption too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from attlas.data.streams.ahead import ahead
from attlas.saes.activations import Rows
from attlas.saes.training.buffer import Source
from attlas.saes.training.clock import Clock

DEPTH = 2
"""Chunks that wait on a GPU, by default."""


class SideStream:
    """The stream that a thread's work goes to; on a CPU there is none, and nothing to wait for.

    Args:
        device: of the work.
        cuda: in place of torch.cuda, for tests.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._cuda, self._stream = cuda, None
        if device.type == "cuda":
            self._stream = cuda.Stream(device)
            self._stream.wait_stream(cuda.current_stream(device))  # weights may still be on their way

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Work inside goes to this stream."""
        with contextlib.nullcontext() if self._stream is None else self._cuda.stream(self._stream):
            yield

    def done(self) -> Any:
        """What to wait for until the work given so far is done; None on a CPU."""
        return None if self._stream is None else self._stream.record_event()

    def take_over(self, event: Any, tensors: Mapping[str, Tensor]) -> None:
        """The current stream waits for the event, and the tensors are its own from here on."""
        if event is None or self._stream is None:
            return
        for tensor in tensors.values():
            current = self._cuda.current_stream(tensor.device)
            current.wait_event(event)
            tensor.record_stream(current)  # or their memory might be given away while it is read

    def to_host(self, rows: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[dict[str, Tensor], Any]:
        """(copies in the machine's memory, what to wait for before they are read); pinned, so that the GPU copies by itself."""
        if self._stream is None:
            return {name: r.to(dtype).cpu().contiguous() for name, r in rows.items()}, None
        held = {name: torch.empty(r.shape, dtype=dtype, pin_memory=True) for name, r in rows.items()}
        for name, r in rows.items():
            held[name].copy_(r.to(dtype), non_blocking=True)
        return held, self.done()


class AheadSource:
    """The chunks of a source, the next ones made by a thread.

    Args:
        source: asked by the thread alone; exchanges nothing with other processes.
        depth: chunks that may wait; one more is in the making, all on the device.
        device: where the source works.
        clock: told what is waited for a chunk, as `part`.
        cuda: in place of torch.cuda, for tests.

    Example:
        >>> from attlas.saes.training.ahead import AheadSource
        >>> source = AheadSource(lambda n: {"a": torch.full((1, 1), n)}, 2, torch.device("cpu"))
        >>> [int(source(n)["a"]) for n in (0, 1, 7)]
        [0, 1, 7]
        >>> source.close()
    """

    def __init__(
        self,
        source: Source,
        depth: int,
        device: torch.device,
        clock: Clock | None = None,
        part: str = "model",
        cuda: Any = torch.cuda,
    ) -> None:
        self._source, self._depth, self._clock, self._part = source, depth, clock or Clock(), part
        self._side = SideStream(device, cuda)
        self._coming: Generator[tuple[Rows, Any], None, None] | None = None
        self._next = 0

    def __call__(self, chunk: int) -> Rows:
        """A chunk's rows. Numbers that follow one another are made ahead; another one begins anew."""
        with self._clock.on(self._part):
            if self._coming is None or chunk != self._next:
                self.close()
                self._coming = ahead(self._made(chunk), self._depth, name="attlas-capture")
            try:
                rows, event = next(self._coming)
            except BaseException:
                self._coming = None  # asked again, it begins anew
                raise
        self._next = chunk + 1
        self._side.take_over(event, rows)
        return rows

    def _made(self, chunk: int) -> Iterator[tuple[Rows, Any]]:
        while True:
            with self._side.working():
                made = self._source(chunk), self._side.done()
            yield made
            del made  # the reader's alone
            chunk += 1

    def close(self) -> None:
        """End the thread, after the chunk it is at."""
        if self._coming is not None:
            self._coming.close()
            self._coming = None
