"""Losses of a model on text or images: of each sequence, and over a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.interp.labels import loss_labels

Measured = tuple[float, float, int]


def sequence_loss(model: HookedModel, target: Tensor, logits: Tensor) -> Tensor:
    """Loss of each sequence or image, nats, [B]."""
    if model.cfg.family == "vit":
        return torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")
    return model.cross_entropy(target, logits).mean(-1)


@dataclass(frozen=True)
class Judged:
    """What one model has on each sequence or image, so that models can be compared in pairs.

    Attributes:
        loss: float64 [n]: mean cross-entropy in nats, or how far features turn (see `Judge`).
        right: share of right predictions, float64 [n]; NaN of a backbone.
        n_predictions: of each sequence or image.
    """

    loss: np.ndarray
    right: np.ndarray
    n_predictions: int

    @property
    def total(self) -> Measured:
        """(mean loss, accuracy, predictions) over all; every sequence has as many predictions."""
        return float(self.loss.mean()), float(self.right.mean()), self.n_predictions * len(self.loss)

    def first(self, n: int) -> Judged:
        """The first n sequences or images."""
        return Judged(self.loss[:n], self.right[:n], self.n_predictions)


def judge_rows(logits: Tensor, target: Tensor, per_token: bool) -> Tensor:
    """(mean cross-entropy in nats, share right) of each sequence or image, float64 [B, 2].

    Args:
        logits: [B, T, vocabulary] of a text model, [B, classes] of a classifier.
        target: the tokens [B, T] themselves, or classes [B].
    """
    if not per_token:
        loss = torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")
        return torch.stack([loss.double(), (logits.argmax(-1) == target).double()], dim=-1)
    rows = []
    for row, tokens in zip(logits, target, strict=True):  # one sequence at a time, to save memory
        loss = torch.nn.functional.cross_entropy(row[:-1].float(), tokens[1:], reduction="sum").double()
        rows.append(torch.stack([loss, (row[:-1].argmax(-1) == tokens[1:]).sum().double()]) / (len(tokens) - 1))
    return torch.stack(rows)


@torch.no_grad()
def judged(
    model: HookedModel,
    data: TokenDataset | ImageDataset,
    batch_size: int = 8,
    forward: Callable[[Tensor], Tensor] | None = None,
    track: Track = no_track,
) -> Judged:
    """Cross-entropy and accuracy of next tokens or image classes, of each sequence or image.

    Args:
        forward: what gives logits; the model itself by default.

    Raises:
        ConfigError: a model without a head, or images without labels that it knows.
    """
    forward = forward or model
    if model.cfg.family != "vit":
        model.require_head("loss that says what dropping costs")
    labels = loss_labels(model, data)
    found: list[Tensor] = []
    start = 0
    for batch in track(data.batches(batch_size), "loss"):
        logits = forward(batch)
        target = batch if labels is None else labels[start : start + len(batch)]
        found.append(judge_rows(logits, target.to(logits.device), labels is None).cpu())
        start += len(batch)
    loss, right = torch.cat(found).numpy().T
    return Judged(loss, right, 1 if labels is not None else data.batches(1)[0].shape[1] - 1)


def quality(
    model: HookedModel,
    data: TokenDataset | ImageDataset,
    batch_size: int = 8,
    forward: Callable[[Tensor], Tensor] | None = None,
    track: Track = no_track,
) -> Measured:
    """(mean cross-entropy in nats, accuracy, predictions) of next tokens or image classes; otherwise as `judged`."""
    return judged(model, data, batch_size, forward, track).total
