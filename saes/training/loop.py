"""The training loop. It reads from top to bottom; nothing is called back but `track`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attlas.data.progress import Track, no_track
from attlas.data.workspace import jsonable
from attlas.errors import NonFiniteError
from attlas.kernels.gpu.precision import products_in
from attlas.saes.base import LossTerms, StepContext
from attlas.saes.training.buffer import MixingBuffer
from attlas.saes.training.checkpoint import NOT_SHARED, restore_checkpoint, save_checkpoint
from attlas.saes.training.clock import PARTS
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.fused import FusedStep
from attlas.saes.training.history import History, curve_row
from attlas.saes.training.parallel.share import Share
from attlas.saes.training.trainer import SAETrainer


def train_loop(
    trainers: list[SAETrainer],
    buffer: MixingBuffer,
    config: TrainConfig,
    *,
    folder: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, str] | None = None,
    track: Track = no_track,
    share: Share = NOT_SHARED,
) -> History:
    """Train all SAEs on the same batches.

    Args:
        trainers: they are changed in place.
        buffer: source of activations for every hook that the trainers read.
        config: schedule and sizes.
        folder: for `training.jsonl` and checkpoints; None keeps neither.
        resume: go on from the folder's checkpoint, when it has one.
        identity: hashes of model and data, kept in the checkpoint; going on with others is refused.
        track: shows how far it is, and is told the curve's rows at every logged step.
        share: this process's part, where several train together; the first alone writes and returns the curve.

    Raises:
        ConfigError: the checkpoint is of another configuration, model or data.
        NonFiniteError: a loss is NaN or infinite; the folder's checkpoint is of an earlier, finite step.
    """
    record = jsonable(config) | dict(identity or {})
    start, rows = restore_checkpoint(folder, trainers, buffer, record) if folder is not None and resume else (0, [])
    buffer.rows = {hook: rows_ND for hook, rows_ND in buffer.rows.items() if not share.hooks or hook in share.own}
    history = History(folder if share.group.first else None, rows)
    saved = start
    since, since_step = time.perf_counter(), start
    clock = buffer.clock
    clock.restart()

    for step in track(range(start, config.n_steps), "training", config.n_steps - start):
        with clock.on("data"):
            batch = buffer.next_batch(config.batch_size)
        lr_factor, penalty_scale = config.lr_factor(step), config.penalty_scale(step)
        logged = (step + 1) % config.log_every == 0 or step + 1 == config.n_steps
        due = config.checkpoint_every > 0 and (step + 1) % config.checkpoint_every == 0
        new_rows = []

        for trainer in trainers:
            with clock.on("sae"):
                x_BD = batch[trainer.hook] * trainer.scale
                dead_F = trainer.dead(config.dead_tokens)
                rate = trainer.learning_rate * lr_factor
                if trainer.fused is None:
                    with products_in(trainer.precision):
                        terms = trainer.sae.loss(x_BD, StepContext(dead_F=dead_F, penalty_scale=penalty_scale))
                        _require_finite(trainer, terms, step, saved, folder)
                        trainer.optimizer.zero_grad(set_to_none=True)
                        terms.total.backward()
                    trainer.sae.before_step()
                    if config.clip is not None:
                        torch.nn.utils.clip_grad_norm_(trainer.sae.parameters(), config.clip)
                    trainer.set_learning_rate(lr_factor)
                    trainer.optimizer.step()
                    trainer.sae.after_step()
                elif not isinstance(trainer.fused, FusedStep) or trainer.fused.waits:
                    with products_in(trainer.precision):
                        terms = trainer.fused.step(x_BD, dead_F, rate, penalty_scale)
                    _require_finite(trainer, terms, step, saved, folder)
                else:  # the device is waited for after logged steps and before checkpoints alone
                    if step == start or step % config.log_every == 0:
                        trainer.look_ahead(config.log_every * config.batch_size, config.dead_tokens)
                    terms = trainer.fused.step(x_BD, dead_F, rate, penalty_scale, trainer.dead_bound)
                    if (logged or due) and (spoilt := trainer.fused.look()):
                        _require_finite(trainer, terms, spoilt - 1, saved, folder, spoilt=True)
                trainer.count(terms.fired_F, len(x_BD))

            if logged:
                new_rows.append(_row(trainer, terms, x_BD, dead_F, step, config))

        if logged:
            now = time.perf_counter()
            rate = (step + 1 - since_step) * config.batch_size / max(now - since, 1e-9)
            since, since_step, shares = now, step + 1, clock.shares()
            clock.restart()
            new_rows = share.rows(new_rows)
            for row in new_rows:
                row |= {"tokens_per_second": rate, **shares}
                history.add(row)
        if (
            folder is not None
            and due
            and save_checkpoint(folder, step + 1, trainers, buffer, record, history.rows, share)
        ):
            saved = step + 1
        if new_rows:
            track.news(_news(new_rows), new_rows)
    return history


def _news(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tokens a second, means over SAEs of explained variance and L0, and where the time went."""
    ev, l0 = (sum(row[key] for row in rows) / len(rows) for key in ("explained_variance", "l0"))
    time_in = " ".join(f"{part} {rows[0][f'{part}_fraction']:.0%}" for part in PARTS)
    return f"{rows[0]['tokens_per_second']:,.0f} tokens/s, EV {ev:.3f}, L0 {l0:.1f}, {time_in}"


def _row(
    trainer: SAETrainer, terms: LossTerms, x_BD: Tensor, dead_F: Tensor, step: int, config: TrainConfig
) -> dict[str, Any]:
    """One row of the curve (see `history.TRAINING`)."""
    rate = trainer.learning_rate * config.lr_factor(step)
    told = {"sae": trainer.name, "hook": trainer.hook}
    return told | curve_row(terms, x_BD, dead_F, step + 1, (step + 1) * config.batch_size, rate)


def _require_finite(
    trainer: SAETrainer, terms: LossTerms, step: int, saved: int, folder: Path | None, *, spoilt: bool = False
) -> None:
    """Raise for a loss that is no number; `spoilt`: it was not at `step`, whatever it is now."""
    if not spoilt and bool(torch.isfinite(terms.total)):
        return
    kept = f"the checkpoint of step {saved} in '{folder}' is kept" if saved else "no checkpoint had been written"
    raise NonFiniteError(
        f"the loss of '{trainer.name}' became {float(terms.total.detach())} at step {step + 1}; {kept}; "
        f"lower the learning rate (it was {trainer.learning_rate:.2g}) or keep normalise on"
    )
