"""`--column` and `--split` wherever a text may be named."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attlas.cli import VERBS, main
from attlas.cli.inputs import DataArgs, load_data
from attlas.cli.prune.args import Args as PruneArgs
from attlas.cli.prune.work import _data
from attlas.data.text import load_tokens
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
                assert {"column", "split", "pad", "chat"} <= names, found
    assert {"entropy", "eval", "features", "capture", "prune", "redundancy"} <= set(with_text)
    assert {"text", "column", "split", "pad", "chat"} <= {f.name for f in dataclasses.fields(TrainConfig)}


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


@pytest.fixture
def documents(tmp_path: Path) -> str:
    """Twelve documents of unlike lengths, one a line."""
    rows = [{"text": " ".join(f"number {j}" for j in range(i + 2))} for i in range(12)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "some.jsonl")


def test_padding_reaches_the_text_of_every_verb(documents: str, gpt2_mini: HookedModel) -> None:
    """As `load_tokens(packed=False)` has it, wherever a text is named; packed without the switch."""
    small: dict[str, Any] = {"text": documents, "seq_len": 16, "n_tokens": 4096}
    expected = load_tokens(documents, gpt2_mini.tokenizer, seq_len=16, n_tokens=4096, packed=False)
    assert expected.mask is not None
    found = [load_data(gpt2_mini, DataArgs(**small, pad=True)), load_inputs(gpt2_mini, TrainConfig(**small, pad=True))]
    found.append(held_out(gpt2_mini, documents, seq_len=16, n_tokens=4096, pad=True))
    assert {data.hash for data in found} == {expected.hash}
    assert load_data(gpt2_mini, DataArgs(**small)).mask is None
    halves = _data(gpt2_mini, PruneArgs(**small, calibration=documents, calibration_tokens=4096, pad=True))
    assert sum(int(half.mask.sum()) for half in halves if half.mask is not None) == expected.n_tokens


def test_a_verb_measures_padded_text_or_refuses_it(
    documents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--text", documents, "--seq-len", "16", "-w", str(tmp_path / "w"), "--json"]
    assert main(["redundancy", "--pad", *asked]) == 0
    padded = json.loads(capsys.readouterr().out)["ranking"]
    assert main(["redundancy", *asked]) == 0
    assert json.loads(capsys.readouterr().out)["ranking"] != padded
    assert main(["entropy", "selection", "--pad", *asked]) == 2
    assert "is padded" in (said := capsys.readouterr().err)
    assert "without --pad" in said


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
