"""Losses of a model on text or images: of each sequence, and over a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.data.dataset import NO_TARGET, Dataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.interp.labels import loss_labels

Measured = tuple[float, float, int]


def sequence_loss(model: HookedModel, target: Tensor, logits: Tensor) -> Tensor:
    """Loss of each sequence or image, nats, [B]; of text the mean over its next tokens, padding (NO_TARGET) left out."""
    if model.cfg.family == "vit":
        return _image_loss(target, logits)
    losses = model.cross_entropy(target, logits)  # 0 where there is no target
    return losses.sum(-1) / (target[:, 1:] != NO_TARGET).sum(-1).to(losses.device)


def _image_loss(target: Tensor, logits: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")


@dataclass(frozen=True)
class Losses:
    """What one model has on each sequence or image, so that models can be compared in pairs.

    Attributes:
        loss: float64 [n]: mean cross-entropy in nats, or how far features turn (see `LossMeter`).
        right: share of right predictions, float64 [n]; NaN of a backbone.
        n_predictions: of each sequence or image: one number, or int64 [n] of padded text.
    """

    loss: np.ndarray
    right: np.ndarray
    n_predictions: int | np.ndarray

    @property
    def total(self) -> Measured:
        """(mean loss, accuracy, predictions in all); a mean over sequences or images, long or short."""
        n = int(np.broadcast_to(self.n_predictions, self.loss.shape).sum())
        return float(self.loss.mean()), float(self.right.mean()), n

    def first(self, n: int) -> Losses:
        """The first n sequences or images."""
        each = self.n_predictions if isinstance(self.n_predictions, int) else self.n_predictions[:n]
        return Losses(self.loss[:n], self.right[:n], each)


def loss_and_accuracy(logits: Tensor, target: Tensor, per_token: bool) -> Tensor:
    """(mean cross-entropy in nats, share right) of each sequence or image, float64 [B, 2].

    Args:
        logits: [B, T, vocabulary] of a text model, [B, classes] of a classifier.
        target: the tokens [B, T] themselves, NO_TARGET in the padding behind them, or classes [B].
    """
    if not per_token:
        loss = _image_loss(target, logits)
        return torch.stack([loss.double(), (logits.argmax(-1) == target).double()], dim=-1)
    rows = []
    for row, tokens in zip(logits, target, strict=True):  # one sequence at a time, to save memory
        n = int((tokens != NO_TARGET).sum())
        loss = torch.nn.functional.cross_entropy(row[: n - 1].float(), tokens[1:n], reduction="sum").double()
        rows.append(torch.stack([loss, (row[: n - 1].argmax(-1) == tokens[1:n]).sum().double()]) / (n - 1))
    return torch.stack(rows)


def n_predictions(data: Dataset) -> int | np.ndarray:
    """Predictions of each sequence or image: T − 1 of packed text, one fewer than its tokens of a padded row, 1 of images."""
    if data.tensor.ndim != 2:
        return 1
    if data.mask is None:
        return int(data.tensor.shape[1]) - 1
    found: np.ndarray = data.mask.sum(1).numpy() - 1
    return found


@torch.no_grad()
def measure_losses(
    model: HookedModel,
    data: Dataset,
    batch_size: int = 8,
    forward: Callable[[Tensor], Tensor] | None = None,
    track: Track = no_track,
) -> Losses:
    """Cross-entropy and accuracy of next tokens or image classes, of each sequence or image.

    Args:
        forward: what gives logits; the model itself by default.

    Raises:
        ConfigError: a model without a head, or images without labels of its classes.
    """
    forward = forward or model
    model.require_text_head("loss that says what dropping costs")
    labels = loss_labels(model, data)
    found: list[Tensor] = []
    for batch in track(data.minibatches(batch_size, labels), "loss"):
        logits = forward(batch.inputs)
        assert batch.targets is not None
        found.append(loss_and_accuracy(logits, batch.targets.to(logits.device), labels is None).cpu())
    loss, right = torch.cat(found).numpy().T
    return Losses(loss, right, n_predictions(data))


def quality(
    model: HookedModel,
    data: Dataset,
    batch_size: int = 8,
    forward: Callable[[Tensor], Tensor] | None = None,
    track: Track = no_track,
) -> Measured:
    """(mean cross-entropy in nats, accuracy, predictions) of next tokens or image classes; otherwise as `measure_losses`."""
    return measure_losses(model, data, batch_size, forward, track).total
