"""Alerts: when they begin, when they end, and that they do not flicker."""

from __future__ import annotations

import numpy as np
import pytest

from attlas.analyses.stability.alerts import Alert, AlertConfig, AlertMonitor
from attlas.errors import ConfigError


def _feed(monitor: AlertMonitor, entropies: list[float], log_t: float = 4.0) -> list[Alert]:
    found = []
    for step, value in enumerate(entropies):
        grid = np.array([[value, 3.0]])
        found += monitor.update(10 * step, grid / log_t)
    return found


def test_collapse_begins_and_ends_with_the_step_it_began() -> None:
    monitor = AlertMonitor((1, 2), AlertConfig(collapse=0.1, patience=3, release=1.5))
    alerts = _feed(monitor, [3.0, 0.2, 0.1, 0.2, 0.1, 0.35, 0.4, 1.0, 1.0, 1.0])
    assert [(a.kind, a.began, a.layer, a.head, a.since, a.step) for a in alerts] == [
        ("collapse", True, 0, 0, 10, 30),
        ("collapse", False, 0, 0, 70, 90),
    ]
    assert alerts[0].threshold == pytest.approx(0.1 * 3 / 4)
    assert "head 0.0" in str(alerts[0])
    assert "since step 10" in str(alerts[0])


def test_hysteresis_an_edge_does_not_flicker() -> None:
    monitor = AlertMonitor((1, 2), AlertConfig(collapse=0.1, patience=2, release=1.5))
    alerts = _feed(monitor, [3.0] + [0.29, 0.29] + [0.31, 0.29] * 20)  # 0.31 is above 0.3, but below 0.45
    assert len(alerts) == 1
    assert monitor.active("collapse").tolist() == [[True, False]]
    short = AlertMonitor((1, 2), AlertConfig(patience=3))
    assert _feed(short, [3.0] + [0.1, 0.1, 3.0] * 10) == []  # never three in a row


def test_reference_log_t() -> None:
    monitor = AlertMonitor((1, 2), AlertConfig(collapse=0.1, reference="log_t", patience=1))
    alerts = _feed(monitor, [0.5, 0.39])  # 10 % of log T is 0.4; at start it was 0.5 only
    assert [a.began for a in alerts] == [True]


def test_uniform_counts_after_the_grace_only() -> None:
    monitor = AlertMonitor((1, 2), AlertConfig(uniform=0.99, grace=5, patience=2))
    alerts = _feed(monitor, [4.0] * 10)
    assert [(a.kind, a.since, a.step) for a in alerts] == [("uniform", 50, 60)]
    moved = AlertMonitor((1, 2), AlertConfig(uniform=0.99, grace=5, patience=2))
    assert _feed(moved, [4.0] * 5 + [3.5] * 10) == []


def test_nonfinite_and_absent_heads() -> None:
    monitor = AlertMonitor((1, 2), AlertConfig(patience=3))
    value = np.array([[np.nan, 3.0]])
    alerts = monitor.update(0, value / 4, np.array([[1.0, 0.0]]))
    assert [(a.kind, a.head) for a in alerts] == [("nonfinite", 0)]
    silent = AlertMonitor((1, 2), AlertConfig(patience=1))
    for step in range(5):
        assert silent.update(step, value / 4) == []


@pytest.mark.parametrize(
    "bad", [{"collapse": 0.0}, {"uniform": 1.5}, {"patience": 0}, {"release": 0.5}, {"reference": "end"}]
)
def test_bad_config(bad: dict) -> None:
    with pytest.raises(ConfigError):
        AlertConfig(**bad)
