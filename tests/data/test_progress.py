"""A bar by itself: on a terminal, and nowhere else."""

from __future__ import annotations

import io

import pytest

from attlas.data.progress import no_track, terminal_track


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


def test_training_draws_one_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from attlas.saes import TrainConfig, train_sae

    config = TrainConfig(n_tokens=64, d_sae=32, k=4, seq_len=32, batch_size=32, buffer_tokens=128)
    for progress in (True, False):
        stream = _Terminal()
        monkeypatch.setattr("sys.stderr", stream)
        train_sae(config, progress=progress)
        assert ("training" in stream.getvalue()) == progress
