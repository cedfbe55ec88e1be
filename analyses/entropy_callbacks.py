"""EntropyTracker inside Hugging Face's Trainer and Lightning."""

from __future__ import annotations

import importlib
from typing import Any

from attlas.analyses.entropy_tracker import EntropyTracker
from attlas.errors import MissingExtraError


def trainer_callback(**settings: Any) -> Any:
    """A `transformers.TrainerCallback`: `Trainer(…, callbacks=[trainer_callback(every=50, out="entropy.parquet")])`.

    The tracker is `.tracker`. Steps are optimizer steps, also with gradient accumulation. `AlertConfig(stop=True)` ends
    the training after the current step, as early stopping does.

    Args:
        settings: of EntropyTracker, except model and optimizer.
    """
    from transformers import TrainerCallback

    class EntropyCallback(TrainerCallback):
        tracker: EntropyTracker | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if self.tracker is not None:
                self.tracker.close()
            self.tracker = EntropyTracker(model, **{"reduce": args.world_size > 1, **settings})
            self.tracker.skip_to(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if self.tracker is not None:
                self.tracker.step()
                if self.tracker.should_stop:
                    control.should_training_stop = True
            return control

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.tracker is not None:
                self.tracker.close()

    return EntropyCallback()


def lightning_callback(**settings: Any) -> Any:
    """A Lightning `Callback`; the module's own `self.model` is watched when it has one, else the module itself.

    Raises:
        MissingExtraError: neither `lightning` nor `pytorch_lightning` is installed.
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
