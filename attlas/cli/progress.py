"""How far a verb is: bars on a terminal; elsewhere (a log, a pipe, a batch job) a plain line every few seconds.

Tasks nest: what is begun while another runs is shown behind it. On a terminal rich draws them. Elsewhere a thread says
where things stand, so that a log is never silent for longer than `INTERVAL`, however long one item takes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.text import Text

from attlas.data.progress import item_count

T = TypeVar("T")

INTERVAL = 5.0  # seconds between lines of a log
MOMENT = 0.01  # seconds that a task is given before it is told of, however long ago the last line was


@dataclass
class Task:
    """Something that takes a while.

    Attributes:
        total: items in all, or None where only their time can be told.
        done: items finished.
        news: what else there is to say, such as a loss.
        shown: whether a line has been printed of it.
    """

    description: str
    total: int | None = None
    done: int = 0
    news: str = ""
    start: float = field(default_factory=time.monotonic)
    shown: bool = False

    def count(self) -> str:
        """Its name, and n/total where there is a total."""
        return self.description if self.total is None else f"{self.description} {self.done}/{self.total}"

    def pace(self) -> str:
        """Time so far, rate, time left."""
        seconds = time.monotonic() - self.start
        if not self.done:
            return f"{clock(seconds)} so far"
        each = seconds / self.done
        rate = f"{1 / each:.1f} a second" if each < 1 else f"{each:.1f} s each"
        left = "" if self.total is None else f", {clock(each * max(0, self.total - self.done))} left"
        return f"{clock(seconds)} so far, {rate}{left}"


def clock(seconds: float) -> str:
    """0:07, 12:30, 1:02:03"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Reporter:
    """The command line's `Track` (attlas.data.progress): tasks under way, outermost first; subclasses draw them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tasks: list[Task] = []

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Go through an iterable as one task."""
        with self.task(description, item_count(iterable, total)) as task:
            for item in iterable:
                yield item
                task.done += 1
                self.changed(task)

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """One task, from here to the end of the block."""
        task = Task(description, total)
        self.tasks.append(task)
        self.begun(task)
        try:
            yield task
        finally:
            self.tasks.remove(task)
            self.ended(task)

    def news(self, text: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Say something of the innermost task."""
        if self.tasks:
            self.tasks[-1].news = text
            self.changed(self.tasks[-1])

    def begun(self, task: Task) -> None: ...

    def changed(self, task: Task) -> None: ...

    def ended(self, task: Task) -> None: ...


class Lines(Reporter):
    """A plain line every few seconds."""

    def __init__(self, console: Console, interval: float | None = None) -> None:
        super().__init__(console)
        self.interval = INTERVAL if interval is None else interval
        self._last = time.monotonic()  # of the line before; short tasks one after the other are silence too
        self._idle = threading.Event()
        self._clock: threading.Thread | None = None

    def begun(self, task: Task) -> None:
        if self._clock is None:
            self._idle.clear()
            self._clock = threading.Thread(target=self._tick, daemon=True, name="attlas progress")
            self._clock.start()

    def ended(self, task: Task) -> None:
        if not self.tasks and self._clock is not None:
            self._idle.set()
            self._clock.join()
            self._clock = None
        if task.shown and task.done and not self.tasks:
            self._print(f"{task.count()} in {clock(time.monotonic() - task.start)}")

    def _tick(self) -> None:
        while not self._idle.wait(max(MOMENT, self._last + self.interval - time.monotonic())):
            self._print(self.line())

    def line(self) -> str:
        """Where things stand: every task's count, the pace of the outermost that has one, and the news."""
        tasks = list(self.tasks)
        if not tasks:
            return ""
        tasks[0].shown = True
        paced = next((task for task in tasks if task.done), tasks[-1])
        news = "".join(f"; {task.news}" for task in tasks if task.news)
        return f"{', '.join(task.count() for task in tasks)} ({paced.pace()}{news})"

    def _print(self, line: str) -> None:
        if line:
            self._last = time.monotonic()
            with contextlib.suppress(OSError, ValueError):  # a log that is closed is no reason to stop
                print(line, file=self.console.file, flush=True)


class Bars(Reporter):
    """Bars that rich draws."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars: Progress | None = None
        self._ids: dict[int, Any] = {}

    def begun(self, task: Task) -> None:
        if self._bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), _Count(), TimeRemainingColumn())
            self._bars = Progress(*columns, TextColumn("[dim]{task.fields[news]}"), console=self.console)
            self._bars.start()
        self._ids[id(task)] = self._bars.add_task(task.description, total=task.total, news="")

    def changed(self, task: Task) -> None:
        if self._bars is not None:
            self._bars.update(self._ids[id(task)], completed=task.done, total=task.total, news=task.news)

    def ended(self, task: Task) -> None:
        assert self._bars is not None
        bar = self._ids.pop(id(task))
        if task.total is None or self.tasks:
            self._bars.remove_task(bar)  # what is nested would pile up, what has no count says nothing afterwards
        if not self.tasks:
            self._bars.stop()
            self._bars = None


def reporter(console: Console) -> Reporter:
    """Bars on a terminal, lines elsewhere."""
    return (Bars if console.is_terminal else Lines)(console)


class _Count(MofNCompleteColumn):
    """n/total, or nothing where there is no total."""

    def render(self, task: RichTask) -> Text:
        return Text("") if task.total is None else super().render(task)
