"""Where a training's time goes, and model and autoencoders on devices of their own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.saes import TrainConfig
from attlas.saes.training import train
from attlas.saes.training.buffer import MixingBuffer
from attlas.saes.training.clock import PARTS, Clock
from attlas.saes.training.history import TIMES, live_runs

HOOK = "blocks.0.attn.hook_z"
SMALL = {"k": 4, "d_sae": 64, "n_tokens": 512, "batch_size": 64, "buffer_tokens": 256, "seq_len": 32, "log_every": 2}


def test_parts_count_once_and_the_inner_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    def wait(seconds: int) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("attlas.saes.training.clock.time", SimpleNamespace(perf_counter=lambda: now))
    clock = Clock()
    with clock.on("data"):
        wait(2)
        with clock.on("model"):
            wait(6)
        wait(2)
    wait(2)  # belongs to none
    assert clock.shares() == {"data_fraction": 4 / 12, "model_fraction": 6 / 12, "sae_fraction": 0}
    clock.restart()
    assert sum(clock.shares().values()) == 0


def test_every_logged_step_says_where_the_time_went(gpt2_mini: HookedModel) -> None:
    tokens = torch.randint(0, 4096, (16, 32), generator=torch.Generator().manual_seed(0))
    result = train.train_sae(
        TrainConfig(hooks=(HOOK,), **SMALL),
        model=gpt2_mini,
        data=TokenDataset.from_tokens(tokens, "drawn"),
        progress=False,
    )
    rows = result.history.rows
    assert len(rows) == 4
    for row in rows:
        assert 0 < sum(row[name] for name in TIMES) <= 1
        assert row["sae_fraction"] > 0
    assert sum(row["model_fraction"] for row in rows) > 0
    assert tuple(f"{part}_fraction" for part in PARTS) == TIMES


def test_a_live_curve_of_before_is_still_shown(tmp_path: Path) -> None:
    row = dict.fromkeys(("hook", "step", "tokens", "loss", "mse", "penalty", "l0", "explained_variance"), 1)
    row |= dict.fromkeys(("dead_fraction", "learning_rate", "tokens_per_second"), 1)
    folder = tmp_path / ".training" / "abc"
    folder.mkdir(parents=True)
    (folder / "training.jsonl").write_text(json.dumps(row) + "\n")
    assert len(live_runs(tmp_path)[0].rows) == 1


def test_a_buffer_holds_rows_on_its_device() -> None:
    buffer = MixingBuffer(lambda n: {"a": torch.randn(32, 3)}, 64, 0, device=torch.device("meta"))
    assert buffer.next_batch(8)["a"].device.type == "meta"


def test_the_model_is_opened_on_its_own_device(monkeypatch: pytest.MonkeyPatch, gpt2_mini: HookedModel) -> None:
    asked: list[str] = []

    def load(name: str, device: str, dtype: str) -> HookedModel:
        asked.append(device)
        return gpt2_mini

    monkeypatch.setattr(train, "load_model", load)
    data = TokenDataset.from_tokens(
        torch.randint(0, 4096, (16, 32), generator=torch.Generator().manual_seed(0)), "drawn"
    )
    config = TrainConfig(hooks=(HOOK,), device="cpu", model_device="cuda:1", **SMALL)
    result = train.train_sae(config, data=data, progress=False)
    assert asked == ["cuda:1"]
    assert result.saes[HOOK].W_dec.device.type == "cpu"
    buffer = train.make_buffer(gpt2_mini, data, [HOOK], config)
    assert buffer.device == torch.device("cpu")
    with pytest.raises(ConfigError, match="device 'nowhere' cannot be used"):
        train.make_buffer(gpt2_mini, data, [HOOK], TrainConfig(device="nowhere", model_device="cpu", **SMALL))
