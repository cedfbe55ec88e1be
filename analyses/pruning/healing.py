"""Train a pruned model for a few steps so that the rest takes over what was dropped (all weights, no adapters).

Objectives: `distill`, KL(dense ‖ pruned) of the output distributions (Hinton et al. 2015, arXiv 1503.02531); `ce`, the
plain loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from attlas.analyses.pruning.surgery import forward_logits
from attlas.data.dataset import NO_TARGET
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.schema import TableSchema, column
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError, NonFiniteError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.labels import loss_labels, targets_for
from attlas.interp.structure import linear_weight

HEALING = TableSchema(
    "healing",
    "one logged training step",
    (
        column("step", pa.int32(), "steps", "steps done; 0 is the pruned model as it was cut"),
        column("loss", pa.float64(), "nats", "objective on the training batch; empty at step 0"),
        column("eval_loss", pa.float64(), "nats", "cross-entropy on held-out data; empty where it was not measured"),
        column("learning_rate", pa.float64(), "", "learning rate of the step"),
    ),
    only="where it was healed",
)
SCHEMAS = (HEALING,)


@dataclass(frozen=True)
class HealConfig:
    """How to heal.

    Attributes:
        steps: optimiser steps; 0 heals nothing.
        learning_rate: peak; it rises over the first tenth and falls to 0 as a cosine.
        batch_size: sequences or images a step.
        objective: distill or ce.
        eval_every: steps between measurements on held-out data.
        seed: of the order of data.
    """

    steps: int = 0
    learning_rate: float = 3e-4
    batch_size: int = 8
    objective: str = "distill"
    eval_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or self.eval_every < 1:
            raise ConfigError(f"heal steps {self.steps}, batch_size {self.batch_size} or eval_every is out of range")
        if self.objective not in ("distill", "ce"):
            raise ConfigError(f"objective '{self.objective}' is unknown; choose distill or ce")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate {self.learning_rate} must be above 0")


@dataclass(frozen=True)
class HealResult:
    """Rows of the table healing."""

    rows: tuple[dict[str, Any], ...]
    config: HealConfig

    def table(self) -> pa.Table:
        """Table healing."""
        return HEALING.table(list(self.rows))

    @property
    def eval_losses(self) -> list[tuple[int, float]]:
        """(step, held-out loss), the first before any step."""
        return [(row["step"], row["eval_loss"]) for row in self.rows if row["eval_loss"] is not None]

    def plot(self) -> Any:
        """Training objective and held-out loss against steps."""
        figure = new_figure()
        logged = [row for row in self.rows if row["loss"] is not None]
        figure.add_scatter(x=[r["step"] for r in logged], y=[r["loss"] for r in logged], name=self.config.objective)
        steps, losses = zip(*self.eval_losses, strict=True)
        figure.add_scatter(x=steps, y=losses, name="held-out loss", mode="lines+markers")
        figure.update_layout(xaxis_title="steps", yaxis_title="nats", title="healing")
        return figure


def heal(
    hf: Any,
    dense: AnyModel,
    data: TokenDataset | ImageDataset,
    held_out: TokenDataset | ImageDataset,
    config: HealConfig,
    *,
    frozen: Sequence[nn.Parameter] = (),
    track: Track = no_track,
) -> HealResult:
    """Train `hf` in place.

    Args:
        hf: a pruned model from `prune_build.build`.
        dense: the model it came from: the teacher.
        data: what to train on; the calibration data.
        held_out: what the curve is measured on.
        frozen: parameters that stay as they are (the zeros of a stock build, see `prune_build.silenced`).

    Raises:
        NonFiniteError: the loss is no longer finite.
        ConfigError: images whose labels are not of the model's classes.

    Example:
        >>> from attlas.analyses.pruning import Drop, HealConfig, build, heal
        >>> smaller, _ = build(model, Drop.parse(("attn:2",)))
        >>> heal(smaller, model, text, text, HealConfig(steps=2)).table().num_rows
        3
    """
    dense = as_hooked(dense)
    if dense.cfg.family != "vit":
        dense.require_head("loss to heal with")
    zeros = {id(p) for p in frozen}
    parameters = [p for p in hf.parameters() if id(p) not in zeros]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    keep_silent = _silent_rows(hf)
    rows = [{"step": 0, "loss": None, "eval_loss": _loss(hf, dense, held_out, config.batch_size), "learning_rate": 0.0}]
    batches = _forever(dense, data, config)
    for step in track(range(1, config.steps + 1), "healing"):
        rate = config.learning_rate * _schedule(step, config.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        inputs, targets = next(batches)
        with torch.enable_grad():
            loss = _objective(hf, dense, inputs, targets, config.objective)
            optimiser.zero_grad()
            loss.backward()
        if not math.isfinite(loss.item()):
            raise NonFiniteError(f"the loss is {loss.item()} at healing step {step}; lower the learning rate")
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        keep_silent()
        measure = step % config.eval_every == 0 or step == config.steps
        eval_loss = _loss(hf, dense, held_out, config.batch_size) if measure else None
        rows.append({"step": step, "loss": loss.item(), "eval_loss": eval_loss, "learning_rate": rate})
    return HealResult(tuple(rows), config)


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return step / warm if step <= warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _forever(
    dense: HookedModel, data: TokenDataset | ImageDataset, config: HealConfig
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(inputs, targets) in an order that each pass draws anew."""
    targets = targets_for(dense, data)
    generator = torch.Generator().manual_seed(config.seed)
    while True:
        for rows in torch.randperm(len(data), generator=generator).split(config.batch_size):
            yield data.tensor[rows], None if targets is None else targets[rows]


def _objective(hf: Any, dense: HookedModel, inputs: Tensor, targets: Tensor | None, objective: str) -> Tensor:
    """Mean over all predictions; those in padding, which have no target, count for nothing."""
    inputs = inputs.to(dense.device)
    logits = forward_logits(hf, inputs).float()
    if objective == "distill":
        with torch.no_grad():
            teacher = dense(inputs).float().log_softmax(-1)
        student = logits.log_softmax(-1)
        divergence = (teacher.exp() * (teacher - student)).sum(-1)
        if targets is not None and targets.ndim == 2:
            divergence = divergence[(targets != NO_TARGET).to(divergence.device)]
        return divergence.mean()
    if targets is None:
        raise ConfigError("objective ce needs labelled images; choose distill")
    targets = targets.to(logits.device)
    if targets.ndim == 1:
        return nn.functional.cross_entropy(logits, targets)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


@torch.no_grad()
def _loss(hf: Any, dense: HookedModel, data: TokenDataset | ImageDataset, batch_size: int) -> float:
    total = count = 0.0
    labels = loss_labels(dense, data)
    for batch in data.minibatches(batch_size, labels):
        assert batch.targets is not None
        weight = int((batch.targets[:, 1:] != NO_TARGET).sum()) if labels is None else len(batch)
        total += _objective(hf, dense, batch.inputs, batch.targets, "ce").item() * weight
        count += weight
    return total / count


def _silent_rows(hf: Any) -> Callable[[], None]:
    """A function that puts back the zeros of silenced heads: whole zero rows of an output projection."""
    projections = [
        m for name, m in hf.named_modules() if name.endswith(("attn.c_proj", "self_attn.o_proj", "attention.o_proj"))
    ]
    rows = [(linear_weight(module), (linear_weight(module) == 0).all(1)) for module in projections]

    @torch.no_grad()
    def restore() -> None:
        for weight, silent in rows:
            weight[silent] = 0

    return restore
