"""What a run of the model is judged by: functions logits [B, T, V] → one number a prompt [B].

Any function of that shape is a metric; these are the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.errors import ConfigError

Metric = Callable[[Tensor], Tensor]


def at_positions(logits: Tensor, positions: Tensor) -> Tensor:
    """Rows of [B, T, V] at one position a prompt, [B, V]; positions int64 [B]."""
    return logits[torch.arange(logits.shape[0], device=logits.device), positions.to(logits.device)]


def _mean_over(rows: Tensor, ids: Tensor) -> Tensor:
    """Mean of rows [B, V] over ids [B, n], where −1 is no id."""
    ids = ids.to(rows.device)
    valid = ids >= 0
    return (rows.gather(1, ids.clamp_min(0)) * valid).sum(1) / valid.sum(1).clamp_min(1)


@dataclass(frozen=True)
class LogitDifference:
    """Mean logit of the right answers − mean logit of the wrong ones, in logits.

    Attributes:
        right, wrong: token ids int64 [B, n], padded with −1; `wrong` may be [B, 0], then it is the logit alone.
        positions: where the answer is predicted, int64 [B].
    """

    right: Tensor
    wrong: Tensor
    positions: Tensor
    unit: str = "logits"

    def __call__(self, logits: Tensor) -> Tensor:
        rows = at_positions(logits, self.positions)
        return _mean_over(rows, self.right) - (_mean_over(rows, self.wrong) if self.wrong.shape[1] else 0.0)


@dataclass(frozen=True)
class ProbabilityDifference:
    """Probability of all right answers together − that of all wrong ones (Hanna et al. 2023, arXiv 2305.00586)."""

    right: Tensor
    wrong: Tensor
    positions: Tensor
    unit: str = "probability"

    def __call__(self, logits: Tensor) -> Tensor:
        rows = at_positions(logits, self.positions).softmax(-1)
        total = torch.zeros(rows.shape[0], dtype=rows.dtype, device=rows.device)
        for sign, ids in ((1.0, self.right), (-1.0, self.wrong)):
            ids = ids.to(rows.device)
            total = total + sign * (rows.gather(1, ids.clamp_min(0)) * (ids >= 0)).sum(1)
        return total


@dataclass(frozen=True)
class KLDivergence:
    """KL(reference ‖ run) of the next-token distribution at the answer's position, nats.

    Attributes:
        reference: logits of the run compared with, [B, T, V].
        positions: int64 [B], or None for the mean over all positions.
    """

    reference: Tensor
    positions: Tensor | None = None
    unit: str = "nats"

    def __call__(self, logits: Tensor) -> Tensor:
        p, q = self.reference.log_softmax(-1), logits.log_softmax(-1)
        if p.shape != q.shape:
            raise ConfigError(
                f"the reference logits are {list(p.shape)} and the run's {list(q.shape)}; use equal prompts"
            )
        kl = (p.exp() * (p - q)).sum(-1)
        return kl.mean(-1) if self.positions is None else at_positions(kl[..., None], self.positions)[:, 0]


@dataclass(frozen=True)
class CrossEntropy:
    """Mean loss of each prompt's own next tokens, nats; tokens int64 [B, T]."""

    tokens: Tensor
    unit: str = "nats"

    def __call__(self, logits: Tensor) -> Tensor:
        targets = self.tokens[:, 1:].to(logits.device)
        return -logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0].mean(1)


def unit_of(metric: Metric) -> str:
    """The metric's unit, "" for one that does not say."""
    return str(getattr(metric, "unit", ""))
