"""Work that takes a model: queued, one piece at a time, cancellable, with a time limit, and saying what runs.

A page asks for a result by key with every drawing of it: the first time queues the work, the next times find it running,
and then done. What nobody asks for any more is dropped, so a browser that goes elsewhere stops its own work.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from attlas.data.models_catalog import catalog
from attlas.data.progress import item_count
from attlas.errors import AttlasError, ConfigError

if TYPE_CHECKING:
    from attlas.interp import HookedModel

T = TypeVar("T")
POLL_MS = 600  # how often a page that waits is drawn again
KEEP = 32  # results kept
HISTORY = 50  # ended pieces of work that are told of
WAITING = 8  # pieces of work in the queue
ABANDONED_S = 90.0  # browsers slow the timers of hidden tabs down to one a minute
UPLOADS = 16
UPLOAD_BYTES = 64_000_000
_log = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised inside the work when it is to end early; the message is the state it ends in."""


@dataclass(eq=False)
class Job:
    """One piece of work.

    Attributes:
        title: what it does, as the page says it.
        seconds: time limit, from when it begins.
        state: queued, running, done, failed, cancelled, or late (over its time limit).
        result: what the work returned, when done.
        error: one line, when failed.
        note, fraction: what it is at, and how far (0–1, or None).
    """

    key: str
    title: str
    seconds: float
    work: Callable[[Job], Any] = field(repr=False)
    state: str = "queued"
    result: Any = None
    error: str = ""
    note: str = ""
    fraction: float | None = None
    began: float = 0.0
    took: float = 0.0
    asked: float = field(default_factory=time.monotonic)
    _cancel: threading.Event = field(default_factory=threading.Event, repr=False)
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def finished(self) -> bool:
        return self._ended.is_set()

    def check(self) -> None:
        """Called often by the work: raises Stopped when it is cancelled, over its time, or asked for by nobody."""
        now = time.monotonic()
        if self._cancel.is_set() or now - self.asked > ABANDONED_S:
            raise Stopped("cancelled")
        if now - self.began > self.seconds:
            raise Stopped("late")

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """A job is a `Track` (attlas.data.progress): the page shows it, and cancelling takes effect at each step."""
        total = item_count(iterable, total)
        for i, item in enumerate(iterable):
            self.check()
            self.note, self.fraction = description, (i / total if total else None)
            yield item

    def news(self, text: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Shown in place of what it is at, until the next step."""
        self.note = text

    def wait(self, seconds: float) -> bool:
        """Block until it ended; False when it did not within the time."""
        return self._ended.wait(seconds)

    def describe(self) -> dict[str, Any]:
        """As plain JSON values; without the result."""
        return {
            "key": self.key,
            "title": self.title,
            "state": self.state,
            "error": self.error,
            "note": self.note if self.state == "running" else "",
            "fraction": self.fraction if self.state == "running" else None,
            "seconds": self.seconds,
            "took": round(self.took, 2) if self.finished else None,
        }

    def poll(self) -> int | bool:
        """What a page puts under "live": milliseconds until it is drawn again, False when there is nothing to wait for."""
        return False if self.finished else POLL_MS

    def _end(self, state: str) -> None:
        self.took = time.monotonic() - self.began if self.began else 0.0
        self.state = state
        self._ended.set()


def _name(key: Hashable) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


class JobQueue:
    """A queue of work on models, and the models it runs on.

    Args:
        models: name → folder, for models that are neither embedded nor fetched.
    """

    def __init__(self, models: Mapping[str, str] | None = None) -> None:
        self._folders = dict(models or {})
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._models: OrderedDict[str, HookedModel] = OrderedDict()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._uploads: OrderedDict[str, bytes] = OrderedDict()
        self._closed = False
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._current: Job | None = None
        self._ended: deque[dict[str, Any]] = deque(maxlen=HISTORY)

    # -- work ------------------------------------------------------------------------------------------------------

    def job(self, key: Hashable, title: str, work: Callable[[Job], Any], seconds: float = 60.0) -> Job:
        """The job of this key; queued now when there is none.

        Args:
            key: everything the result depends on; of plain values.
            title: what it does, in a few words.
            work: called as work(job) on the worker thread; calls job.check() or loops over job(…).
            seconds: time limit.
        """
        name = _name(key)
        with self._lock:
            found = self._jobs.get(name)
            if found is not None:
                found.asked = time.monotonic()
                self._jobs.move_to_end(name)
                return found
            made = Job(name, title, seconds, work)
            if self._closed:
                made.error = "the server is stopping"
                made._end("failed")
                return made
            if sum(job.state == "queued" for job in self._jobs.values()) >= WAITING:
                made.error = f"{WAITING} pieces of work are waiting already; try again when they are done"
                made._end("failed")
                return made
            self._jobs[name] = made
            for old in [k for k, job in self._jobs.items() if job.finished][: max(0, len(self._jobs) - KEEP)]:
                del self._jobs[old]
            if self._worker is None:
                self._worker = threading.Thread(target=self._run, name="attlas-jobs", daemon=True)
                self._worker.start()
        self._queue.put(made)
        return made

    def history(self) -> list[dict[str, Any]]:
        """What waits, runs, and ended since the server started, the newest first; see `Job.describe`, and when it ended."""
        with self._lock:
            going = [job.describe() | {"ended": None} for job in reversed(self._jobs.values()) if not job.finished]
        return going + list(self._ended)

    def look(self, key: Hashable) -> Job | None:
        """The job of this key, asked for once more; None where there is none."""
        return self.by_name(_name(key))

    def by_name(self, name: str) -> Job | None:
        """The job that says this key of itself (`Job.key`)."""
        with self._lock:
            found = self._jobs.get(name)
            if found is not None:
                found.asked = time.monotonic()
            return found

    def cancel(self, key: str) -> None:
        """Stop a job at its next step; a queued one will not begin."""
        job = self._jobs.get(key)
        if job is not None and not job.finished:
            job._cancel.set()

    def forget(self, key: str) -> None:
        """Drop an ended job, so that the next drawing of the page runs it again."""
        with self._lock:
            if key in self._jobs and self._jobs[key].finished:
                del self._jobs[key]

    def close(self) -> None:
        """Stop all work and wait for the step that runs; later jobs are refused."""
        with self._lock:
            self._closed = True
            worker, jobs = self._worker, list(self._jobs.values())
        for job in jobs:
            job._cancel.set()
        if worker is not None:
            self._queue.put(None)
            worker.join(60)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            job.began, self._current, job.state = time.monotonic(), job, "running"
            try:
                job.check()
                job.result = job.work(job)
                job._end("done")
            except Stopped as stopped:
                job._end(str(stopped))
            except AttlasError as error:
                job.error = str(error)
                job._end("failed")
            except Exception as error:  # the server goes on, and the page says what happened
                _log.exception("work failed: %s", job.title)
                job.error = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
                job._end("failed")
            finally:
                self._current = None
                self._ended.appendleft(job.describe() | {"ended": time.time()})
            if job.state == "cancelled" and not job._cancel.is_set():  # nobody waits for it: next time it runs anew
                self.forget(job.key)

    # -- what the work takes ---------------------------------------------------------------------------------------

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of the models that were named to the server."""
        return tuple(self._folders)

    def names(self) -> list[str]:
        """Every model that can be loaded here: embedded, fetched, or named to the server."""
        return list(dict.fromkeys([*(card.name for card in catalog() if card.present), *self._folders]))

    def model(self, name: str) -> HookedModel:
        """The model of a name, loaded once; to be called by work. Cancelling takes effect at each of its layers.

        Raises:
            ModelNotFoundError: it is not embedded, fetched, or named to `attlas serve --models`.
        """
        from attlas.interp import load_model

        if name not in self._models:
            model = load_model(self._folders.get(name, name))
            for layer in model.layers:
                layer.block.register_forward_pre_hook(lambda _module, _args: self._check())
            self._models[name] = model
            while len(self._models) > 3:
                self._models.popitem(last=False)
        self._models.move_to_end(name)
        return self._models[name]

    def _check(self) -> None:
        if self._current is not None and threading.current_thread() is self._worker:
            self._current.check()

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned for this key before (an SAE, a data set); the last 24 are kept. To be called by work."""
        if key not in self._kept:
            self._kept[key] = make()
            while len(self._kept) > 24:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    # -- uploads ---------------------------------------------------------------------------------------------------

    def keep_upload(self, content: bytes) -> str:
        """Keep a file in memory; the id for the URL. The last 16 are kept, and nothing is written to disk.

        Raises:
            ConfigError: more than 64 MB.
        """
        if len(content) > UPLOAD_BYTES:
            raise ConfigError(
                f"a file of {len(content) / 1e6:.0f} MB is too large; at most {UPLOAD_BYTES / 1e6:.0f} MB"
            )
        name = hashlib.sha256(content).hexdigest()[:16]
        with self._lock:
            self._uploads[name] = content
            while len(self._uploads) > UPLOADS:
                self._uploads.popitem(last=False)
        return name

    def upload(self, name: str) -> bytes | None:
        """An upload by its id, or None when it is not here any more."""
        return self._uploads.get(name)
