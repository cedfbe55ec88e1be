"""What a tracker tells: alerts that stop a loop, failures logged once, loggers, Parquet and the workspace."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from attlas.analyses.stability.alerts import Alert, AlertConfig
from attlas.analyses.stability.layer import AttentionLayer, Reading
from attlas.analyses.stability.tracker import EntropyTracker, TrackerConfig
from attlas.data.workspace import Ref, Workspace
from attlas.interp import HookedModel

from .tracked import inputs_of, loss_of


def test_nonfinite_queries_raise_an_alert_not_an_exception(gpt2_mini: HookedModel) -> None:
    hf = copy.deepcopy(gpt2_mini.hf).train()
    with torch.no_grad():
        hf.transformer.h[1].attn.c_attn.weight[0, 0] = torch.nan
    heard: list[Alert] = []

    def on_alert(alert: Alert) -> None:
        heard.append(alert)
        raise RuntimeError("the user's own function fails")

    with EntropyTracker(hf, every=1, on_alert=on_alert, alerts=AlertConfig(stop=True)) as tracker:
        loss_of(hf, inputs_of(gpt2_mini)).backward()
        tracker.step()
    assert tracker.should_stop
    assert {a.kind for a in heard} == {"nonfinite"}
    assert (1, 0) in {(a.layer, a.head) for a in heard}
    assert 0 not in {a.layer for a in heard}


def test_collapse_stops_the_loop(gpt2_mini: HookedModel, caplog: pytest.LogCaptureFixture) -> None:
    hf, inputs = copy.deepcopy(gpt2_mini.hf).train(), inputs_of(gpt2_mini)
    tracker = EntropyTracker(hf, every=1, alerts=AlertConfig(patience=2, stop=True))
    with caplog.at_level(logging.WARNING, "attlas.tracker"), tracker:
        for step in range(10):
            if step == 3:
                with torch.no_grad():
                    hf.transformer.h[2].attn.c_attn.weight[:, : 2 * 192] *= 12
                    hf.transformer.h[2].attn.c_attn.bias[: 2 * 192] *= 12
            loss_of(hf, inputs)
            tracker.step()
            if tracker.should_stop:
                break
    assert step == 4
    assert {(a.kind, a.since) for a in tracker.alerts} == {("collapse", 3)}
    assert {a.layer for a in tracker.alerts} >= {2}
    assert "entropy collapse since step 3" in caplog.text


def test_failures_inside_are_logged_once(gpt2_mini: HookedModel, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> Reading:
        raise ValueError("shape of tomorrow")

    def adapter(model: nn.Module) -> list[AttentionLayer]:
        return [AttentionLayer("broken", model, 2, broken)]

    model = nn.Linear(3, 3).train()
    with caplog.at_level(logging.WARNING), EntropyTracker(model, every=1, adapter=adapter) as tracker:
        for _ in range(3):
            model(torch.zeros(1, 3))
            tracker.step()
    assert caplog.text.count("shape of tomorrow") == 1
    assert tracker.table().num_rows == 0


def test_parquet_loggers_and_workspace(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    class Board:
        def __init__(self) -> None:
            self.seen: list[tuple[str, float, int]] = []

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.seen.append((tag, value, step))

    class Lost:
        def log(self, values: dict[str, float], step: int) -> None:
            raise ConnectionError("gone")

    hf, board, seen = copy.deepcopy(gpt2_mini.hf).train(), Board(), []
    out = tmp_path / "deep" / "entropy.parquet"
    loggers = [board, Lost(), lambda values, step: seen.append((step, values))]
    with EntropyTracker(hf, TrackerConfig(every=2), out=out, loggers=loggers) as tracker:
        for _ in range(4):
            loss_of(hf, inputs_of(gpt2_mini))
            tracker.step(loss=torch.tensor(2.0, requires_grad=True))
    assert pq.read_table(out).equals(tracker.table())
    assert pq.read_table(out).schema.field("entropy").metadata[b"unit"] == b"nats"
    assert ("attlas/loss", 2.0, 2) in board.seen
    assert [step for step, _ in seen] == [0, 2]
    assert seen[0][1]["attlas/entropy_min/blocks.2.attn"] <= seen[0][1]["attlas/entropy_mean/blocks.2.attn"]
    run = tracker.save(Workspace(tmp_path / "ws"), Ref("mine", "0"))
    assert Workspace(tmp_path / "ws").read_table(run, "tracker").num_rows == 48
    assert Workspace(tmp_path / "ws").read_table(run, "tracker_alerts").num_rows == 0
    tracker.alerts.append(Alert("collapse", True, 1, 2, 0, 2, 0.01, 0.05))
    run = tracker.save(Workspace(tmp_path / "ws"), Ref("mine", "0"))
    (row,) = Workspace(tmp_path / "ws").read_table(run, "tracker_alerts").to_pylist()
    assert (row["kind"], row["began"], row["head"], row["threshold"]) == ("collapse", True, 2, 0.05)
    assert len(tracker.plot().data) == 24
