"""The tracker in Hugging Face's Trainer and in Lightning."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from attlas.analyses.stability.alerts import AlertConfig
from attlas.analyses.stability.callbacks import lightning_callback, lightning_callback_class, trainer_callback
from attlas.errors import MissingExtraError
from attlas.interp import HookedModel

from .tracked import count_hooks, inputs_of, loss_of


def test_hugging_face_trainer(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    ids = inputs_of(gpt2_mini, 16)["input_ids"]
    data = [{"input_ids": row, "labels": row} for row in ids]
    callback = trainer_callback(every=2, out=tmp_path / "entropy.parquet", alerts=AlertConfig(patience=1, stop=True))
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-4, logging_strategy="no",
    )  # fmt: skip
    Trainer(model=copy.deepcopy(gpt2_mini.hf), args=args, train_dataset=data, callbacks=[callback]).train()
    assert sorted(set(callback.tracker.table()["step"].to_pylist())) == [0, 2, 4]
    assert not any(len(m._forward_hooks) for m in callback.tracker.model.modules())
    assert pq.read_table(tmp_path / "entropy.parquet").num_rows == 3 * 24


def test_lightning_callback(gpt2_mini: HookedModel) -> None:
    """Against a stand-in for Lightning's loop: on_train_start, on_train_batch_end per micro-batch, on_train_end."""
    if importlib.util.find_spec("lightning") is None and importlib.util.find_spec("pytorch_lightning") is None:
        with pytest.raises(MissingExtraError, match="pip install lightning"):
            lightning_callback()

    class Trainer:
        global_step, should_stop, world_size = 0, False, 1

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(gpt2_mini.hf).train()

    trainer, module = Trainer(), Module()
    callback = lightning_callback_class(object)({"every": 2})
    callback.on_train_start(trainer, module)
    for batch in range(8):
        loss_of(module.model, inputs_of(gpt2_mini))
        trainer.global_step += batch % 2  # two micro-batches a step
        callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(3.0)}, None, batch)
    callback.on_train_end(trainer, module)
    table = callback.tracker.table().to_pandas()
    assert sorted(set(table.step)) == [0, 2]
    assert (table.loss == 3).all()
    assert count_hooks(module) == 0


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("which", ["gpt2_mini", "vit_mini"])
def test_trainer_records_the_loss_it_logs(
    which: str, accumulation: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Language models get num_items_in_batch from the Trainer, classifiers do not; the log is the reference."""
    from transformers import Trainer, TrainingArguments

    model: HookedModel = request.getfixturevalue(which)
    key, rows = next(iter(inputs_of(model, 8).items()))
    labels = rows if key == "input_ids" else torch.arange(8) % 4
    data = [{key: row, "labels": label} for row, label in zip(rows, labels, strict=True)]
    callback = trainer_callback(every=1)
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-4, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(model=copy.deepcopy(model.hf), args=args, train_dataset=data, callbacks=[callback])
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    table = callback.tracker.table().to_pandas()
    np.testing.assert_allclose(table.groupby("step").loss.first(), logged, rtol=1e-3)
