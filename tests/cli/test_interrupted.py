"""Ctrl-C and SIGTERM: status 130 and 143, and a line with the command that goes on."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from attlas.cli import main
from attlas.data.workspace import Workspace
from attlas.saes import load_sae
from attlas.saes.training.history import History

SIZES = ["--n-tokens", "1024", "--batch-size", "128", "--buffer-tokens", "256", "--d-sae", "16", "--k", "4"]
TEXT = ["--seq-len", "64", "--text", "embedded:val"]


def stop_after(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, calls: int, stop: Callable[[], None]) -> None:
    """Stop at the n-th call of a function; later calls are the usual ones."""
    usual, left = getattr(owner, name), [calls]

    def wrapped(*args: object, **more: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            stop()
        return usual(*args, **more)

    monkeypatch.setattr(owner, name, wrapped)


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("stop", "status", "word"), [(interrupt, 130, "interrupted"), (terminate, 143, "terminated")])
def test_training_goes_on(
    stop: Callable[[], None],
    status: int,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    argv = ["train", *SIZES, *TEXT, "--log-every", "1", "--checkpoint-every", "2", "-w"]
    stop_after(monkeypatch, History, "add", 5, stop)
    assert main([*argv, str(tmp_path / "a b")]) == status
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"attlas train: {word}; go on from the last checkpoint with: attlas train" in said
    assert signal.getsignal(signal.SIGTERM) is handler
    again = shlex.split(said.split(" with: ")[1])
    assert again == ["attlas", *argv, str(tmp_path / "a b"), "--resume"]
    assert main(again[1:]) == 0
    assert main([*argv, str(tmp_path / "whole")]) == 0
    first, second = (Workspace(tmp_path / name) for name in ("a b", "whole"))
    found, whole = (load_sae(w.folder(w.runs("sae")[0])) for w in (first, second))
    assert found.hash == whole.hash


def test_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(monkeypatch, History, "add", 2, interrupt)
    assert main(["train", *SIZES, *TEXT, "--log-every", "1", "-w", str(tmp_path)]) == 130
    assert "no checkpoint had been written yet" in capsys.readouterr().err


def test_sweeps_go_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "train",
        *SIZES,
        *TEXT,
        "--log-every",
        "1",
        "--checkpoint-every",
        "2",
        "--sweep-k",
        "2",
        "4",
        "-w",
        str(tmp_path),
    ]
    stop_after(monkeypatch, History, "add", 7, interrupt)
    assert main(argv) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("--resume")


def test_capture_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from attlas.saes.training import store

    argv = ["capture", "--n-tokens", "4500", *TEXT, "--to", str(tmp_path / "acts")]
    stop_after(monkeypatch, store, "save_file", 3, terminate)
    assert main(argv) == 143
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("attlas capture: terminated; the same command goes on after the shards that are written: ")
    assert said.endswith(shlex.join(["attlas", *argv]))
    assert not [p for p in (tmp_path / "acts").iterdir() if p.name.endswith(".tmp")]
    assert main(argv) == 0


def test_other_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("attlas.cli.entropy.heads.open_model", lambda *_: interrupt())
    assert main(["entropy", "-w", str(tmp_path)]) == 130
    assert (
        f"attlas entropy: interrupted; finished runs are kept; again: attlas entropy -w {tmp_path}"
        in capsys.readouterr().err
    )
