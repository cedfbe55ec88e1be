"""Scores that rank what to drop, and the loss that tells what dropping cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.drop_selection import Drop, Unit, masked, ranked
from attlas.analyses.head_effects import HeadEffectsConfig, head_effects
from attlas.analyses.redundancy import RedundancyConfig, redundancy
from attlas.data.images import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.interp.labels import loss_labels


@torch.no_grad()
def quality(
    model: HookedModel,
    data: TokenDataset | ImageDataset,
    batch_size: int = 8,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float, int]:
    """(mean cross-entropy in nats, accuracy, predictions) of next tokens or image classes.

    Args:
        forward: what gives logits; the model itself by default.

    Raises:
        ConfigError: a vision model without classifier, or images without labels that it knows.
    """
    forward = forward or model
    loss = right = 0.0
    count = 0
    labels = loss_labels(model, data)
    for batch in data.batches(batch_size):
        logits = forward(batch).float()
        if labels is not None:
            target = labels[count : count + len(batch)].to(logits.device)
        else:
            target = batch[:, 1:].flatten().to(logits.device)
            logits = logits[:, :-1].flatten(0, 1)
        loss += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
        right += (logits.argmax(-1) == target).sum().item()
        count += len(target)
    return loss / count, right / count, count


class Scores:
    """Scores of every unit on calibration data, low = redundant; each pass over the data is made once.

    Attention, MLP and block: 1 − cosine (see redundancy). Heads: Δ loss of ablating them (see head_effects).
    """

    def __init__(
        self,
        model: HookedModel,
        calibration: TokenDataset | ImageDataset,
        batch_size: int = 8,
        head_score: str = "zero",
        track: Track = no_track,
    ) -> None:
        self.model, self.calibration = model, calibration
        self.batch_size, self.head_score, self.track = batch_size, head_score, track
        self._modules: dict[Unit, float] | None = None
        self._heads: dict[Unit, float] | None = None

    def of(self, target: str) -> dict[Unit, float]:
        """Scores of a target's units."""
        if target == "head":
            self._heads = self._heads or self.measure("head")
            return self._heads
        self._modules = self._modules or self.measure("all")
        modules = ("attn", "mlp") if target == "joint" else (target,)
        return {unit: score for unit, score in self._modules.items() if unit[0] in modules}

    def measure(self, target: str) -> dict[Unit, float]:
        """Score anew, under whatever hooks are on the model."""
        if target == "head":
            config = HeadEffectsConfig((self.head_score,), batch_size=self.batch_size, n_bootstrap=1)
            effects = head_effects(self.model, self.calibration, config, self.track).mean(self.head_score)
            return {("head", i): float(value) for i, value in enumerate(np.ravel(effects))}
        result = redundancy(
            self.model, self.calibration, RedundancyConfig(batch_size=self.batch_size, n_bootstrap=1), self.track
        )
        modules = {"joint": ("attn", "mlp"), "all": ("attn", "mlp", "block")}.get(target, (target,))
        return {(module, layer): score for layer, module, score in result.ranking(modules)}


def iterative_order(scores: Scores, target: str, n: int) -> list[Unit]:
    """Drop the most redundant, score what is left, and so on (n scoring passes)."""
    chosen: list[Unit] = []
    for _ in range(n):
        with masked(scores.model, Drop.of(chosen, scores.model.cfg.n_heads)):
            measured = scores.measure(target)
        chosen.append(next(unit for unit in ranked(measured) if unit not in chosen))
    return chosen
