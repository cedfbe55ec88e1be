"""`--column` and `--split` wherever a text may be named."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attlas.cli import VERBS
from attlas.cli.inputs import DataArgs, load_data
from attlas.cli.prune.args import Args as PruneArgs
from attlas.cli.prune.work import _data
from attlas.errors import TextDataError
from attlas.interp import HookedModel
from attlas.saes.inputs import held_out, load_inputs, train_and_held_out
from attlas.saes.training.config import TrainConfig


@pytest.fixture
def source(tmp_path: Path) -> str:
    for split in ("train", "test"):
        body = [f"In {split}, number {i} is {i * i} and the next is {i + 1}." for i in range(100)]
        pq.write_table(pa.table({"body": body, "id": range(100)}), tmp_path / f"{split}-00000-of-00001.parquet")
    return str(tmp_path)


def test_every_verb_with_a_text_takes_a_column_and_a_split() -> None:
    with_text = []
    for verb in VERBS:
        args = import_module(f"attlas.cli.{verb}").Args
        for part in get_args(args) or [args]:
            found = getattr(part, "__origin__", part)
            names = {f.name for f in dataclasses.fields(found)}
            if "text" in names:
                with_text.append(verb)
                assert {"column", "split"} <= names, found
    assert {"entropy", "eval", "features", "capture", "prune", "redundancy"} <= set(with_text)
    assert {"text", "column", "split"} <= {f.name for f in dataclasses.fields(TrainConfig)}


def test_they_reach_the_text(source: str, gpt2_mini: HookedModel) -> None:
    small = {"column": "body", "seq_len": 32, "n_tokens": 256}
    found = load_data(gpt2_mini, DataArgs(text=source, split="test", **small))  # type: ignore[arg-type]
    assert "In test" in gpt2_mini.tokenizer.decode(found.tokens.flatten())  # type: ignore[union-attr]
    with pytest.raises(TextDataError, match="has the splits test, train; name one with --split"):
        load_data(gpt2_mini, DataArgs(text=source, **small))  # type: ignore[arg-type]
    with pytest.raises(TextDataError, match="has no column 'text', only body, id"):
        load_data(gpt2_mini, DataArgs(text=source, split="test"))
    trained = load_inputs(gpt2_mini, TrainConfig(text=source, **small))  # type: ignore[arg-type]
    assert "In train" in gpt2_mini.tokenizer.decode(trained.tensor.flatten())
    judged = held_out(gpt2_mini, source, split="test", **small)  # type: ignore[arg-type]
    assert "In test" in gpt2_mini.tokenizer.decode(judged.tensor.flatten())
    parts = {"text": source, "split": "test", "calibration": source, "calibration_split": "train"}
    calibration, evaluation = _data(gpt2_mini, PruneArgs(**parts, **small, calibration_tokens=128))  # type: ignore[arg-type]
    texts = [gpt2_mini.tokenizer.decode(d.tokens.flatten()) for d in (calibration, evaluation)]  # type: ignore[union-attr]
    assert "In train" in texts[0]
    assert "In test" in texts[1]
    assert "In train" not in texts[1]


def test_a_sweep_keeps_a_part_of_its_own_source(source: str, gpt2_mini: HookedModel, vit_mini: HookedModel) -> None:
    config = TrainConfig(text=source, column="body", seq_len=16, n_tokens=1024)
    train, rest = train_and_held_out(gpt2_mini, config)
    rows = [set(map(tuple, part.tensor.tolist())) for part in (train, rest)]
    assert rows[0]
    assert rows[1]
    assert not rows[0] & rows[1]
    assert all("In test" not in gpt2_mini.tokenizer.decode(part.tensor.flatten()) for part in (train, rest))
    first, second = train_and_held_out(vit_mini, TrainConfig(model="vit-mini", images="embedded:glyphs"))
    assert len(second.tensor) <= len(first.tensor) // 4 + 1
    assert set(first.labels.tolist()) == set(second.labels.tolist()) == set(range(36))  # type: ignore[union-attr]
