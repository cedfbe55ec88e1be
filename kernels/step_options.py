"""Optimiser and loss of a training step, whichever implementation makes it."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.kernels.topk_encode import SelectDtype


@dataclass(frozen=True)
class StepOptions:
    """Optimiser and loss of `TopKStep` and the steps on the CPU."""

    k: int
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    unit_norm: bool = True
    """Rescale decoder rows to norm 1 after the update, and take the radial part out of their gradient before it."""
    k_aux: int = 0
    aux_weight: float = 1 / 32
    lazy: bool = False
    """Leave rows alone that dense Adam would not move: those without a gradient whose momentum has faded (row_adam)."""
    select_dtype: SelectDtype = "float32"
    """What features are chosen in, as in `topk_encode`; values, gradients and weights are float32 in any case."""
