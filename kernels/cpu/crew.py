"""Work over tiles on several threads, each with one torch thread.

torch spreads every operation over its threads and waits at a barrier for the last of them. On a machine that is busy, a
thread may not run for some milliseconds, and a step of a thousand small operations waits a thousand times. Here a thread
takes a tile through all of its operations, and takes the next one when it is done: a thread that does not run costs its
own tile at most. torch lets go of the interpreter's lock inside its operations, so Python's threads do.

Tiles are cut by the shapes alone, so a result does not depend on how many threads there are.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
SMALL = 1 << 23  # multiplications below which handing work to another thread costs more than it saves

_here = threading.local()


class _Shared(Iterator[T]):
    """An iterator that several threads take from."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)

    def stop(self) -> None:
        with self._lock:
            self._items = iter(())


class Crew:
    """`size` threads that stay, each with one torch thread and without autograd."""

    def __init__(self, size: int) -> None:
        self.size = size
        ready = threading.Barrier(size + 1)
        self._pool = ThreadPoolExecutor(size, "attlas-tiles", initializer=_one_thread, initargs=(self, ready))
        usual = torch.get_num_threads()
        for _ in range(size):
            self._pool.submit(int)  # a thread starts with its first work
        ready.wait()
        torch.set_num_threads(usual)  # a thread that sets its own number also sets that of threads to come

    def lead(self, work: Callable[[], T]) -> T:
        """`work` on one of the threads, the others helping with its tiles."""
        return self._pool.submit(work).result()

    def share(self, tiles: Iterable[T], work: Callable[[T], object]) -> None:
        """`work` for every tile, in no particular order; the first error stops them all, and is raised."""
        shared = _Shared(tiles)

        def take() -> None:
            try:
                for tile in shared:
                    work(tile)
            except BaseException:
                shared.stop()
                raise

        leads = getattr(_here, "crew", None) is self
        helpers: list[Future[None]] = [self._pool.submit(take) for _ in range(self.size - leads)]
        try:
            if leads:
                take()
        finally:
            # a helper that has not begun (another leader has its thread) is not waited for, if its work is done
            begun = [helper for helper in helpers if not (leads and helper.cancel())]
            errors = [helper.exception() for helper in begun]
        for error in errors:
            if error is not None:
                raise error


def _one_thread(crew: Crew, ready: threading.Barrier) -> None:
    torch.get_num_threads()  # takes up the number for new threads, which would else come after ours
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    _here.crew = crew
    ready.wait()


@functools.lru_cache(maxsize=4)
def _crew(size: int, process: int) -> Crew:
    return Crew(size)


_making = threading.Lock()


def crew() -> Crew | None:
    """The crew to work with: of the calling thread, if it belongs to one, or of as many threads as torch has; else None."""
    own: Crew | None = getattr(_here, "crew", None)
    if own is not None or torch.get_num_threads() < 2:
        return own
    with _making:
        return _crew(torch.get_num_threads(), os.getpid())  # a forked process has no threads of its parent's crew


def lead(work: Callable[[], T], size: float) -> T:
    """`work`, its tiles shared; `size` is about how many multiplications it makes."""
    found = crew() if size >= SMALL else None
    return work() if found is None or getattr(_here, "crew", None) is found else found.lead(work)


def share(tiles: Iterable[T], work: Callable[[T], object], size: float) -> None:
    """`work` for every tile, shared when `size` multiplications are worth it; a single tile is for all of torch's threads."""
    tiles = list(tiles)
    found = crew() if size >= SMALL and len(tiles) > 1 else None
    if found is not None:
        return found.share(tiles, work)
    for tile in tiles:
        work(tile)


TILE_SIZE = 1 << 20  # multiplications below which a tile is not worth a round of Python
MOST_ROWS = 256


def row_tiles(n: int, per_row: float, most: int = MOST_ROWS) -> list[slice]:
    """0 … n in tiles of at most `most` rows, 16 of them where that leaves each enough to do; a row takes about `per_row`
    multiplications."""
    rows = max(1, min(most, max(32, -(-n // 16), math.ceil(TILE_SIZE / max(1.0, per_row)))))
    return [slice(start, min(n, start + rows)) for start in range(0, n, rows)]
