"""Work done ahead of its use by a thread, in the same order, a bounded number of items at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_POLL = 0.02  # seconds between looks at whether the reader is gone


class _End:
    """After the last item; with what the iteration raised, if anything."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterable[T], depth: int = 1, name: str = "attlas-ahead") -> Generator[T, None, None]:
    """The items in their order, the next ones made by a thread while one is used.

    What the iteration raises is raised where the item was wanted. Closing the iterator (or leaving it to the garbage collector)
    ends the thread after the item it is at.

    Args:
        items: iterated in the thread alone.
        depth: how many may wait; one more is in the making.
        name: of the thread.

    Example:
        >>> from attlas.data.streams.ahead import ahead
        >>> list(ahead((n * n for n in range(4)), depth=2))
        [0, 1, 4, 9]
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def hand_over(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=_POLL)
            except queue.Full:
                continue

    def make() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                hand_over(item)
                if stopped.is_set():
                    break
        except BaseException as raised:
            error = raised
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()  # here, where its frames ran: a file is closed by the thread that read it
            hand_over(_End(error))

    thread = threading.Thread(target=make, name=name, daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        thread.join()
