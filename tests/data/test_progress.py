"""One protocol of progress, and a bar by itself: on a terminal, and nowhere else."""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
import time
from typing import Any

import pytest
from rich.console import Console

import attlas.analyses
import attlas.interp
import attlas.saes
from attlas.cli.progress import Bars, Lines
from attlas.dashboard.jobs import Job
from attlas.data.progress import TerminalBars, Track, no_track, terminal_track
from attlas.saes.training.notebook_curve import NotebookCurve


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, wanted in ((True, True), (True, False), (False, True)):
        stream = _Terminal() if terminal else io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        track = terminal_track(wanted)
        assert list(track(iter(range(5)), "training", 5)) == [0, 1, 2, 3, 4]
        assert ("training" in stream.getvalue()) == (terminal and wanted)
        assert (track is no_track) == (not (terminal and wanted))


def test_bars_nest_and_tell_news(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    track = terminal_track()
    for _ in range(2):  # the second time after the bars of the first are gone
        for _ in track(range(2), "outer"):
            for _ in track([1], "inner"):
                track.news("EV 0.9", [{"ev": 0.9}])
    assert "outer" in stream.getvalue()
    assert "inner" in stream.getvalue()
    assert "EV 0.9" in stream.getvalue()


def _job() -> Track:
    job = Job("key", "work", 10.0, lambda job: None)
    job.began = time.monotonic()
    return job


def _curve(monkeypatch: pytest.MonkeyPatch) -> Track:
    display = pytest.importorskip("IPython.display")
    monkeypatch.setattr(display, "display", lambda *args, **kwargs: None)
    return NotebookCurve()


@pytest.mark.parametrize("which", ["silent", "terminal", "lines", "bars", "job", "notebook"])
def test_all_who_show_progress_follow_one_protocol(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=which == "bars")
    track: Track = {
        "silent": lambda: no_track,
        "terminal": TerminalBars,
        "lines": lambda: Lines(console),
        "bars": lambda: Bars(console),
        "job": _job,
        "notebook": lambda: _curve(monkeypatch),
    }[which]()
    assert isinstance(track, Track)
    for name in ("__call__", "news"):
        theirs, ours = (inspect.signature(getattr(cls, name)).parameters for cls in (type(track), Track))
        assert list(theirs) == list(ours)
        assert [p.default for p in theirs.values()] == [p.default for p in ours.values()]
    found = []
    for item in track("ab", "outer"):
        found += [item + x for x in track(iter("xy"), "inner", 2)]
        track.news("well", ())
    track.news("nothing runs")
    assert found == ["ax", "ay", "bx", "by"]
    for _ in track([1, 2], "left early"):
        break
    assert list(track([3], "afterwards")) == [3]


@pytest.mark.parametrize("which", ["terminal", "lines", "bars", "job"])
def test_a_loop_has_as_many_items_for_all_who_show_it(which: str) -> None:
    """Of a list, of an iterator that tells what is left, of a total that is given, and of nothing that tells."""
    cases: list[tuple[Any, int | None, int | None]] = [([1, 2, 3], None, 3), (iter([1, 2, 3]), None, 3)]
    cases += [((x for x in "abc"), 3, 3), ([1, 2], 3, 3), ((x for x in "abc"), None, None)]
    for items, total, expected in cases:
        track: Any = _made(which)
        loop = track(items, "loop", total)
        assert [next(loop), next(loop)]
        if isinstance(track, Job):
            found = track.fraction and round(1 / track.fraction)  # the second item begins
        elif isinstance(track, TerminalBars):
            assert track._bars is not None
            found = track._bars.tasks[0].total
        else:
            found = track.tasks[0].total
        assert found == expected
        loop.close()


def _made(which: str) -> Any:
    console = Console(file=io.StringIO(), force_terminal=which == "bars")
    if which in ("lines", "bars"):
        return Lines(console) if which == "lines" else Bars(console)
    return TerminalBars() if which == "terminal" else _job()


def test_no_function_takes_another_way_to_tell_progress() -> None:
    for package in (attlas.data, attlas.interp, attlas.saes, attlas.analyses):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            for name, value in vars(importlib.import_module(found.name)).items():
                if not inspect.isfunction(value) or value.__module__ != found.name:
                    continue
                for parameter in inspect.signature(value).parameters.values():
                    where = f"{found.name}.{name}({parameter})"
                    assert parameter.name not in ("on_step", "callback", "verbose", "report", "tqdm"), where
                    assert ("Track" in str(parameter.annotation)) == (parameter.name == "track"), where


def test_training_draws_one_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from attlas.saes import TrainConfig, train_sae

    config = TrainConfig(n_tokens=64, d_sae=32, k=4, seq_len=32, batch_size=32, buffer_tokens=128)
    for progress in (True, False):
        stream = _Terminal()
        monkeypatch.setattr("sys.stderr", stream)
        train_sae(config, progress=progress)
        assert ("training" in stream.getvalue()) == progress
