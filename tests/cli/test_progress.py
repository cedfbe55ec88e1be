"""Progress: bars on a terminal, lines with rate and time left in a log."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from attlas.cli import progress
from attlas.cli.common import Output
from attlas.cli.progress import Bars, Lines, Task, clock


def _log(interval: float = 0.03) -> tuple[Lines, io.StringIO]:
    stream = io.StringIO()
    return Lines(Console(file=stream), interval), stream


def _slowly(n: int, seconds: float) -> Any:
    for index in range(n):
        yield index
        time.sleep(seconds)


def test_a_log_gets_a_line_every_interval_even_while_one_item_takes_long() -> None:
    lines, stream = _log()
    for _ in lines(range(1), "one long item"):
        time.sleep(0.2)
    said = stream.getvalue().splitlines()
    assert len(said) >= 4
    assert said[0] == "one long item 0/1 (0:00 so far)"
    assert said[-1] == "one long item 1/1 in 0:00"


def test_lines_show_count_rate_time_left_and_what_is_inside() -> None:
    lines, stream = _log()
    for _ in lines(_slowly(4, 0.06), "checkpoints", 4):
        for _ in lines(_slowly(2, 0.02), "entropy", 2):
            lines.news("loss 1.25")
    said = stream.getvalue()
    assert re.search(r"^checkpoints [1-4]/4 \(0:00 so far, .* a second, 0:00 left\)$", said, re.M), said
    assert re.search(r"^checkpoints 0/4, entropy [0-2]/2 \(.*; loss 1\.25\)$", said, re.M), said
    assert "\x1b" not in said


def test_short_tasks_one_after_the_other_are_told_of_too() -> None:
    lines, stream = _log(interval=0.1)
    start = time.monotonic()
    for index in range(10):
        with lines.task(f"part {index}"):
            time.sleep(0.05)
    intervals = (time.monotonic() - start) / 0.1  # five, and more on a busy machine
    assert 2 <= len(stream.getvalue().splitlines()) <= intervals + 1


def test_what_is_quick_says_nothing() -> None:
    lines, stream = _log(interval=5.0)
    assert list(lines([1, 2, 3], "quick")) == [1, 2, 3]
    assert stream.getvalue() == ""


def test_the_clock_ends_with_the_task_when_it_fails() -> None:
    lines, stream = _log()

    def fail() -> None:
        time.sleep(0.08)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), lines.task("loading"):
        fail()
    said = stream.getvalue()
    assert said.startswith("loading (0:00 so far)")
    time.sleep(0.08)
    assert stream.getvalue() == said


def test_a_closed_log_does_not_stop_the_work() -> None:
    lines, stream = _log()
    stream.close()
    assert list(lines(_slowly(3, 0.04), "on")) == [0, 1, 2]


def test_a_terminal_gets_bars_that_nest() -> None:
    stream = io.StringIO()
    bars = Bars(Console(file=stream, force_terminal=True, width=120))
    with bars.task("loading"):
        pass
    for _ in bars(range(2), "outer"):
        for _ in bars(iter([1]), "inner", 1):
            bars.news("EV 0.9")
    said = stream.getvalue()
    assert "loading" in said
    assert "outer" in said
    assert "2/2" in said


def test_output_writes_lines_to_stderr_where_that_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.02)
    out = Output(as_json=True)
    with out.phase("loading a-model"):
        time.sleep(0.1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("loading a-model (0:00 so far)")


def test_a_title_is_one_line_however_narrow_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    title = "tasks [of a model] that can be scored one after the other with an option that this title goes on to name"
    Output(as_json=False).table(title, ["task"], [("ioi",)])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [title, "task", "ioi"]


def test_rows_of_a_log_are_not_folded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    names = ["head", *(f"repeat_previous_token_{i}" for i in range(5))]
    Output(as_json=False).table("heads", names, [("0.1", *[0.5] * 5)])
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [names, ["0.1", *["0.5"] * 5]]


def test_a_token_that_is_a_line_break_stays_in_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table("tokens", ["feature", "active on"], [("7", "; | \n | the")])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["7", ";", "|", "↵", "|", "the"]


def test_pace_and_clock() -> None:
    task = Task("work", total=10, done=4, start=time.monotonic() - 80)
    assert task.pace() == "1:20 so far, 20.0 s each, 2:00 left"
    assert [clock(s) for s in (7, 750, 3723)] == ["0:07", "12:30", "1:02:03"]
