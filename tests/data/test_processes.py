"""Processes that cannot work together are refused in one line, before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attlas.data.processes import group as module
from attlas.data.processes.group import Group, join
from attlas.errors import ConfigError


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process as torchrun would start it, met with the other one already."""
    monkeypatch.setattr(module, "launched", lambda: (1, 2))
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    return monkeypatch


def refused(monkeypatch: pytest.MonkeyPatch, others: Any, device: str = "auto") -> str:
    monkeypatch.setattr(Group, "all_of", lambda self, value: [others or value, value])
    with pytest.raises(ConfigError) as error:
        join(device)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_some_on_gpus_and_some_not(second_of_two: pytest.MonkeyPatch) -> None:
    assert "processes 0 to 1 lie on cuda, cpu; give all the same --device" in refused(second_of_two, "cuda", "cpu")


def test_fewer_gpus_than_processes_and_two_on_one(second_of_two: pytest.MonkeyPatch) -> None:
    second_of_two.setattr(torch.cuda, "is_available", lambda: True)
    second_of_two.setattr(torch.cuda, "device_count", lambda: 1)
    second_of_two.setattr(torch.cuda, "set_device", lambda place: None)
    assert "process 1 has no GPU: 1 here; lower --nproc-per-node" in refused(second_of_two, None)
    assert "two processes share cuda:0; leave --device out" in refused(second_of_two, None, "cuda:0")
