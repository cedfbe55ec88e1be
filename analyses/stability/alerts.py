"""Alerts on attention entropy: a head that collapses, one stuck at uniform attention, one that is no longer finite.

Each alert has hysteresis: it begins after `patience` checks beyond its threshold, and ends after `patience` checks on
the good side of a second, easier threshold, so that a head at the edge does not flicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from attlas.errors import ConfigError

Kind = Literal["collapse", "uniform", "nonfinite"]


@dataclass(frozen=True)
class AlertConfig:
    """When to raise an alert.

    Attributes:
        collapse: a head has collapsed when its entropy is below this fraction of the reference.
        reference: "start" (the head's own first check) or "log_t" (uniform attention). Both are of normalised entropy, so
            that batches of another length raise no alert.
        uniform: a head is uniform when its normalised entropy is above this.
        grace: checks before "uniform" counts; heads start near uniform, and being *stuck* there is what matters.
        patience: consecutive checks before an alert begins or ends.
        release: a collapse ends above release × its threshold; uniformity ends where its distance from 1 is
            release × larger.
        stop: set `should_stop` on a collapse or a non-finite head.
    """

    collapse: float = 0.1
    reference: Literal["start", "log_t"] = "start"
    uniform: float = 0.999
    grace: int = 20
    patience: int = 3
    release: float = 1.5
    stop: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.collapse < 1 or not 0 < self.uniform <= 1:
            raise ConfigError(f"collapse {self.collapse} must be in (0, 1) and uniform {self.uniform} in (0, 1]")
        if self.patience < 1 or self.release < 1 or self.grace < 0:
            raise ConfigError(
                f"patience {self.patience} and release {self.release} must be ≥ 1, grace {self.grace} ≥ 0"
            )
        if self.reference not in ("start", "log_t"):
            raise ConfigError(f"reference '{self.reference}' is not start or log_t")


@dataclass(frozen=True)
class Alert:
    """One change of one head.

    Attributes:
        kind: "collapse", "uniform" or "nonfinite".
        began: True where the alert begins, False where it ends.
        layer, head: which head; layer counts the tracker's attention layers.
        since: the step of the first of the consecutive checks that led here.
        step: the step of this check.
        value, threshold: normalised entropy (for "nonfinite" the share of such queries), and the line it crossed.
    """

    kind: Kind
    began: bool
    layer: int
    head: int
    since: int
    step: int
    value: float
    threshold: float

    def __str__(self) -> str:
        what = {"collapse": "entropy collapse", "uniform": "uniform attention", "nonfinite": "non-finite attention"}
        state = "since" if self.began else "over; fine since"
        return (
            f"{what[self.kind]} {state} step {self.since}: head {self.layer}.{self.head}, "
            f"{self.value:.4g} against {self.threshold:.4g} (step {self.step})"
        )


class _Latch:
    """Hysteresis over an array of heads: on after `patience` checks with `enter`, off after `patience` with `leave`."""

    def __init__(self, shape: tuple[int, int], patience: int) -> None:
        self.on = np.zeros(shape, dtype=bool)
        self.count = np.zeros(shape, dtype=np.int64)
        self.since = np.zeros(shape, dtype=np.int64)
        self.patience = patience

    def update(self, enter: np.ndarray, leave: np.ndarray, step: int) -> np.ndarray:
        """Heads that switched at this check."""
        moving = np.where(self.on, leave, enter)
        self.since = np.where(moving & (self.count == 0), step, self.since)
        self.count = np.where(moving, self.count + 1, 0)
        switched = self.count >= self.patience
        self.on = self.on ^ switched
        self.count[switched] = 0
        return switched


class AlertMonitor:
    """Watches checks of all heads.

    Args:
        shape: (layers, heads); heads that a layer lacks are NaN in every check, and stay silent.
        config: thresholds.
    """

    def __init__(self, shape: tuple[int, int], config: AlertConfig | None = None) -> None:
        self.config = config or AlertConfig()
        self.start = np.full(shape, np.nan)
        self.n_checks = 0
        patience = self.config.patience
        self._latches: dict[Kind, _Latch] = {
            "collapse": _Latch(shape, patience),
            "uniform": _Latch(shape, patience),
            "nonfinite": _Latch(shape, 1),
        }

    def active(self, kind: Kind) -> np.ndarray:
        """bool [layers, heads]: where an alert is on."""
        return self._latches[kind].on.copy()

    def update(self, step: int, normalized: np.ndarray, nonfinite: np.ndarray | None = None) -> list[Alert]:
        """Take in one check, give the alerts that begin or end with it.

        Args:
            step: of training.
            normalized: [layers, heads] entropy over log(keys); NaN where no query had two keys or more.
            nonfinite: [layers, heads] share of queries whose statistics are NaN or infinite.
        """
        config = self.config
        self.n_checks += 1
        self.start = np.where(np.isnan(self.start), normalized, self.start)
        reference = self.start if config.reference == "start" else np.ones(normalized.shape)
        floor = config.collapse * reference
        stuck = normalized > config.uniform
        if self.n_checks <= config.grace:
            stuck = np.zeros_like(stuck)
        loose = normalized < 1 - config.release * (1 - config.uniform)
        if config.uniform == 1:
            loose = normalized < 1
        bad = np.zeros(normalized.shape) if nonfinite is None else nonfinite
        checks: list[tuple[Kind, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = [
            ("collapse", normalized < floor, normalized > config.release * floor, normalized, floor),
            ("uniform", stuck, loose, normalized, np.full(normalized.shape, config.uniform)),
            ("nonfinite", bad > 0, bad == 0, bad, np.zeros(normalized.shape)),
        ]
        found = []
        for kind, enter, leave, values, line in checks:
            latch = self._latches[kind]
            for layer, head in np.argwhere(latch.update(enter, leave, step)):
                at = (layer, head)
                found.append(
                    Alert(
                        kind,
                        bool(latch.on[at]),
                        int(layer),
                        int(head),
                        int(latch.since[at]),
                        step,
                        float(values[at]),
                        float(line[at]),
                    )
                )
        return found
