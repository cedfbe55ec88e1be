"""The learning rate of a training run that names none.

A rate that is best for 200 steps is too high for 5,000: Adam moves a weight by about the rate a step, so a short run needs
large steps to arrive and a long one small steps to settle. And the entries of a row of norm 1 are about 1/√D, so that the same
rate turns a wide row further. Hence *(ours, measured in docs/saes.md)*

    rate = peak · √(REFERENCE_WIDTH / D) · (REFERENCE_STEPS / steps)^(1/3), at most MOST · peak,

with one peak an architecture (`SAE.default_rate`). `standard` has the power 1/6 in place of 1/3 (`SAE.rate_exponent`); `gated`
takes (REFERENCE_WIDTH / D)² times as much, at most MOST_NARROW, where D is below REFERENCE_WIDTH (`SAE.narrow_exponent`).
Gao et al. 2024 (arXiv 2406.04093) give 2e-4/√(F/2¹⁴) for runs of billions of tokens, which is the floor here for the TopK
families: at 300,000 tokens it is ten times too low.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attlas.saes.base import SAE

REFERENCE_STEPS = 300
REFERENCE_WIDTH = 192
MOST = 1.25
MOST_NARROW = 4.0
EXPONENT = 1 / 3


def gao_rate(d_sae: int) -> float:
    """2e-4/√(F/2¹⁴), the scaling law of Gao et al. 2024 for long runs."""
    return 2e-4 / math.sqrt(d_sae / 2**14)


def default_learning_rate(architecture: type[SAE], d_in: int, d_sae: int, n_steps: int) -> float:
    """Peak learning rate for an architecture, d_sae features on activations of width d_in, and a run of n_steps (Adam).

    Args:
        architecture: its `default_rate` is the best rate of a run of `REFERENCE_STEPS` steps on `REFERENCE_WIDTH` dimensions.
        d_in: width of the activations.
        d_sae: number of features; sets the floor.
        n_steps: optimiser steps of the run, at least 1.
    """
    exponent = architecture.rate_exponent or EXPONENT
    factor = math.sqrt(REFERENCE_WIDTH / d_in) * (REFERENCE_STEPS / max(1, n_steps)) ** exponent
    factor = min(MOST, factor)
    factor *= min(MOST_NARROW, max(1.0, REFERENCE_WIDTH / d_in) ** architecture.narrow_exponent)
    return max(architecture.default_rate * factor, min(gao_rate(d_sae), architecture.default_rate))
