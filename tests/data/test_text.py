"""Text sources: every accepted format gives the same rows, and every bad one a line that says what is wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.data.streams.documents import EMBEDDED, TEXT_DIR, read_documents
from attlas.data.text import load_tokens
from attlas.errors import AttlasError, ConfigError, TextDataError
from attlas.interp import HookedModel

DOCUMENTS = ["The cat sat on the mat.", "A second document, é and 漢字.", "Third: numbers 1 2 3."]


class Letters:
    """A tokenizer whose ids are code points, so that rows can be read by eye."""

    def __init__(self, bos: int | None = 1, eos: int | None = 2) -> None:
        self.bos_token_id, self.eos_token_id = bos, eos

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def _write(folder: Path, kind: str) -> Path:
    path = folder / f"text.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": d}) for d in DOCUMENTS) + "\n", encoding="utf-8")
    elif kind == "txt":
        path.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(pa.table({"text": DOCUMENTS}), path)
    else:  # the layout datasets.save_to_disk leaves
        path = folder / "dataset"
        path.mkdir()
        table = pa.table({"text": DOCUMENTS})
        with pa.ipc.new_stream(path / "data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet", "arrow"])
def test_every_format_gives_the_same_documents(tmp_path: Path, kind: str) -> None:
    assert list(read_documents(_write(tmp_path, kind))) == DOCUMENTS


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    seq_len=st.integers(2, 17),
    bos=st.sampled_from([1, None]),
    eos=st.sampled_from([2, None]),
)
def test_rows_are_bos_and_the_stream_without_gap(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seq_len: int, bos: int | None, eos: int | None
) -> None:
    documents = [chr(97 + i) * n for i, n in enumerate(lengths)]
    path = tmp_path_factory.mktemp("text") / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": d}) for d in documents), encoding="utf-8")
    body = seq_len - (bos is not None)
    total = sum(lengths) + (len(lengths) if eos is not None else 0)
    if total < body:
        with pytest.raises(TextDataError, match="fewer than one sequence"):
            load_tokens(path, Letters(bos, eos), seq_len=seq_len)
        return
    rows = load_tokens(path, Letters(bos, eos), seq_len=seq_len).tokens
    assert rows.shape == (total // body, seq_len)
    if bos is not None:
        assert (rows[:, 0] == bos).all()
        rows = rows[:, 1:]
    stream = rows.flatten().tolist()
    pieces: list[list[int]] = [[]]
    for token in stream:
        if eos is not None and token == eos:
            pieces.append([])
        else:
            pieces[-1].append(token)
    if eos is not None:  # whole documents come out whole, whatever their order
        allowed = [[ord(c) for c in d] for d in documents]
        for piece in pieces[:-1]:
            assert piece in allowed


def test_order_is_the_seeds(gpt2_mini: HookedModel) -> None:
    def rows(seed: int) -> torch.Tensor:
        return load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=64, n_tokens=4096, seed=seed).tokens

    assert torch.equal(rows(3), rows(3))
    assert not torch.equal(rows(3), rows(4))


def test_hash_follows_content_and_shape(gpt2_mini: HookedModel) -> None:
    data = load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=64, n_tokens=2048)
    assert data.take(8).hash == data.take(8).hash
    assert data.take(8).hash != data.take(7).hash
    batches = data.batches(5)
    assert torch.equal(torch.cat(list(batches)), data.tokens)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b"\n\n  \n", "holds no text"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{broken\n', "line 2 is not JSON"),
        ("other.jsonl", b'{"body": "a"}\n', "no column 'text', only body"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TextDataError, match=message):
        list(read_documents(path))


def test_bad_places_are_named(tmp_path: Path) -> None:
    for source in (tmp_path / "absent.txt", tmp_path, "embedded:nothing"):
        with pytest.raises(TextDataError):
            list(read_documents(source))
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(TextDataError, match="no column 'text'"):
        list(read_documents(tmp_path / "t.parquet"))
    with pytest.raises(ConfigError):
        load_tokens("embedded:val", Letters(), seq_len=1)
    with pytest.raises(AttlasError):
        load_tokens(_write(tmp_path, "txt"), Letters(), seq_len=100_000)


def test_no_tokens_at_all_are_refused(gpt2_mini: HookedModel) -> None:
    for n_tokens in (0, -5):
        with pytest.raises(ConfigError, match=f"n_tokens {n_tokens} must be 1 or more"):
            load_tokens("embedded:val", gpt2_mini.tokenizer, n_tokens=n_tokens)


def test_the_packed_training_text_is_the_one_that_older_runs_read() -> None:
    """The sum of train.jsonl from before it was packed."""
    unpacked = gzip.decompress((TEXT_DIR / EMBEDDED["embedded:train"]).read_bytes())
    assert hashlib.sha256(unpacked).hexdigest() == "24f324869b9c030ca44b1a0984067f6af1fcfcdb89ded39550405b514478ea7d"
    assert list(read_documents("embedded:train")) == [json.loads(line)["text"] for line in unpacked.splitlines()]


def test_no_held_out_document_stands_in_the_training_text() -> None:
    train, val = (list(read_documents(f"embedded:{part}")) for part in ("train", "val"))
    assert not set(train) & set(val)
    assert len(set(train)) == len(train)
    assert len(set(val)) == len(val)
