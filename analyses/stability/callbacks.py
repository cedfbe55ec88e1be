"""EntropyTracker inside Hugging Face's Trainer and Lightning."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attlas.analyses.stability.tracker import EntropyTracker
from attlas.errors import MissingExtraError


def trainer_callback(**settings: Any) -> Any:
    """A `transformers.TrainerCallback`: `Trainer(…, callbacks=[trainer_callback(every=50, out="entropy.parquet")])`.

    The tracker is `.tracker`. Steps are optimizer steps, also with gradient accumulation; the loss recorded is the whole
    step's, from the `loss` of the model's outputs (none with label smoothing or a loss function of the Trainer's own).
    `AlertConfig(stop=True)` ends the training after the current step, as early stopping does.

    Args:
        settings: of EntropyTracker, except model and optimizer.

    Example:
        >>> from attlas.analyses.stability import trainer_callback
        >>> callback = trainer_callback(every=100)  # Trainer(model, args, callbacks=[callback])
        >>> type(callback).__name__
        'EntropyCallback'
    """
    from transformers import TrainerCallback

    class EntropyCallback(TrainerCallback):
        tracker: EntropyTracker | None = None
        losses = _StepLoss()

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if self.tracker is not None:
                self.tracker.close()
            self.tracker = EntropyTracker(model, **{"reduce": args.world_size > 1, **settings})
            self.tracker.skip_to(state.global_step)
            self.losses.watch(model)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if self.tracker is not None:
                self.tracker.step(loss=self.losses.take())
                if self.tracker.should_stop:
                    control.should_training_stop = True
            return control

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.losses.close()
            if self.tracker is not None:
                self.tracker.close()

    return EntropyCallback()


class _StepLoss:
    """The loss of one optimizer step from the outputs of its forward passes, as the Trainer adds them up."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._parts: list[Tensor] = []
        self._shares = False

    def watch(self, model: nn.Module) -> None:
        """Look at the outputs of a model in training mode; a compiled one is left alone."""
        self.close()
        if model._compiled_call_impl is None and not hasattr(model, "_orig_mod"):
            self._handle = model.register_forward_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if module.training and isinstance(loss, Tensor):
            # With num_items_in_batch each loss is a share of the accumulated batch's mean; else a mean of its own.
            self._shares = kwargs.get("num_items_in_batch") is not None
            self._parts.append(loss.detach().float().mean())

    def take(self) -> Tensor | None:
        """The step's loss, or None; and begin the next."""
        parts, self._parts = self._parts, []
        if not parts:
            return None
        total = torch.stack(parts).sum()
        return total if self._shares else total / len(parts)

    def close(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._parts = None, []


def lightning_callback(**settings: Any) -> Any:
    """A Lightning `Callback`; the module's own `self.model` is watched when it has one, else the module itself.

    Raises:
        MissingExtraError: neither `lightning` nor `pytorch_lightning` is installed.

    Example:
        >>> from attlas.analyses.stability import lightning_callback
        >>> from attlas.errors import MissingExtraError
        >>> try:
        ...     callback = lightning_callback(every=100)  # Trainer(callbacks=[callback])
        ... except MissingExtraError:
        ...     callback = None  # without Lightning
    """
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return lightning_callback_class(importlib.import_module(name).Callback)(settings)
        except ImportError:
            continue
    raise MissingExtraError("lightning_callback needs Lightning; pip install lightning")


def lightning_callback_class(base: Any) -> Any:
    """The callback over a given base class (lightning's or pytorch_lightning's)."""

    class EntropyCallback(base):
        def __init__(self, settings: dict[str, Any]) -> None:
            super().__init__()
            self.settings = settings
            self.tracker: EntropyTracker | None = None
            self._last = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            model = getattr(pl_module, "model", None)
            reduce = getattr(trainer, "world_size", 1) > 1
            self.tracker = EntropyTracker(pl_module if model is None else model, **{"reduce": reduce, **self.settings})
            self._last = trainer.global_step
            self.tracker.skip_to(self._last)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.tracker is None or trainer.global_step == self._last:
                return  # accumulating
            self._last = trainer.global_step
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self.tracker.step(loss=loss)
            if self.tracker.should_stop:
                trainer.should_stop = True

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if self.tracker is not None:
                self.tracker.close()

    return EntropyCallback
