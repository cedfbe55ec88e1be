"""Text larger than memory: read piece by piece, the documents that are drawn alone kept, the same tokens as ever."""

from __future__ import annotations

import gzip
import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.data import text, text_files
from attlas.data.text import load_tokens, read_documents
from attlas.errors import TextDataError
from attlas.interp import HookedModel

WORDS = ["one", "two", "ä𝄞", 'quo"te', "back\\slash", "line\nbreak", "  ", "{", "[1, 2", "\\u00e9", "x" * 40]
DOCUMENTS = [" ".join(WORDS[i % len(WORDS)] for i in range(n, 3 * n + 4)) + f" {n}" for n in range(30)]


def write(folder: Path, kind: str, documents: list[str]) -> Path:
    path = folder / f"documents.{kind}"
    lines = "".join(json.dumps({"n": i, "text": d}, ensure_ascii=i % 2 == 0) + "\n" for i, d in enumerate(documents))
    if kind == "jsonl":
        path.write_text(lines, encoding="utf-8-sig")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.replace("\n", "\r\n").encode()))
    elif kind == "jsonl.zst":
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(lines.encode())
    elif kind == "json":
        path.write_text(json.dumps([{"text": d} for d in documents], indent=2))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": documents}), path, row_group_size=4)
    else:
        folder = folder / "set"
        folder.mkdir()
        for part in range(3):
            rows = {"text": documents[10 * part : 10 * part + 10]}
            pq.write_table(pa.table(rows), folder / f"train-0000{part}-of-00003.parquet", row_group_size=3)
        return folder
    return path


def by_hand(documents: list[str], tokenizer: Any, seq_len: int, n_tokens: int | None, seed: int) -> torch.Tensor:
    """All documents at once, in the seed's order, joined by EOS and cut into rows behind BOS."""
    stream: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(documents)):
        stream += [*tokenizer(documents[i], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    rows = len(stream) // (seq_len - 1)
    rows = rows if n_tokens is None else min(rows, max(1, n_tokens // seq_len))
    body = torch.tensor(stream[: rows * (seq_len - 1)]).view(rows, -1)
    return torch.cat([torch.full((rows, 1), tokenizer.bos_token_id), body], 1)


@pytest.mark.parametrize("n_tokens", [20, 200, None])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "parquet", "folder"])
def test_the_same_tokens_however_little_may_be_kept(
    kind: str, n_tokens: int | None, tmp_path: Path, gpt2_mini: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tokenizer = write(tmp_path, kind, DOCUMENTS), gpt2_mini.tokenizer
    want = by_hand(DOCUMENTS, tokenizer, 16, n_tokens, seed=3)
    for kept, piece, characters in ((1 << 26, 1 << 20, 6), (300, 37, 1), (1, 5, 6)):
        monkeypatch.setattr(text, "KEPT", kept)
        monkeypatch.setattr(text, "CHARACTERS", characters)  # 1: the first portion does not suffice
        monkeypatch.setattr(text_files, "PIECE", piece)
        assert torch.equal(load_tokens(path, tokenizer, seq_len=16, n_tokens=n_tokens, seed=3).tokens, want)


def test_packed_ids_of_a_large_file(tmp_path: Path, gpt2_mini: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(0, 4096, (50, 33), generator=torch.Generator().manual_seed(0)).tolist()
    pq.write_table(pa.table({"input_ids": ids}), tmp_path / "ids.parquet", row_group_size=8)
    whole = load_tokens(tmp_path / "ids.parquet", gpt2_mini.tokenizer, seq_len=16, n_tokens=400, seed=1).tokens
    monkeypatch.setattr(text, "KEPT", 70)
    found = load_tokens(tmp_path / "ids.parquet", gpt2_mini.tokenizer, seq_len=16, n_tokens=400, seed=1).tokens
    assert torch.equal(found, whole)
    first = np.random.default_rng(1).permutation(50)[0]
    assert found[0].tolist() == ids[first][:16]


def test_memory_follows_what_is_asked_for_not_the_file(
    tmp_path: Path, gpt2_mini: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.jsonl"
    with open(path, "w") as file:
        for i in range(3000):
            file.write(json.dumps({"text": f"{i} " + "one two three " * 280}) + "\n")
    assert path.stat().st_size > 11e6
    monkeypatch.setattr(text, "KEPT", 1 << 18)
    monkeypatch.setattr(text_files, "PIECE", 1 << 16)
    tracemalloc.start()
    try:
        tokens = load_tokens(path, gpt2_mini.tokenizer, seq_len=64, n_tokens=640).tokens
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        documents = list(read_documents(path))  # what it would be with all of them
        all_of_them = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert tokens.shape == (10, 64)
    assert len(documents) == 3000
    assert peak < 2e6 < 10e6 < all_of_them


def test_documents_come_before_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "jsonl", DOCUMENTS)
    with open(path, "a") as file:
        file.write("damaged\n")
    monkeypatch.setattr(text_files, "PIECE", 64)
    documents = read_documents(path)
    assert [next(documents) for _ in range(20)] == DOCUMENTS[:20]
    with pytest.raises(TextDataError, match="line 31 is not JSON"):
        list(documents)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.one_of(st.text(max_size=20), st.lists(st.text(max_size=5), max_size=3)), min_size=1, max_size=6),
    piece=st.integers(1, 40),
    indent=st.sampled_from([None, 2]),
)
def test_pieces_of_any_size_give_the_same_values(values: list[Any], piece: int, indent: int | None) -> None:
    """Values cut anywhere: inside strings, escapes and numbers."""
    records = [{"value": value, "flag": [True, None, -1.5e-7, i]} for i, value in enumerate(values)]
    whole = "\n".join(json.dumps(record, indent=indent, ensure_ascii=i % 2 == 0) for i, record in enumerate(records))
    whole = whole.encode("utf-8", "replace").decode()
    pieces = iter([whole[at : at + piece] for at in range(0, len(whole), piece)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_pieces", lambda path: pieces)
        found = [value for _, value in text_files._json_records(Path("x.jsonl"))]
    assert found == [json.loads(json.dumps(record).encode("utf-8", "replace")) for record in records]


def test_the_next_portion_is_read_while_this_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "KEPT", 10)
    drawn = text._Drawn(write(tmp_path, "jsonl", DOCUMENTS), 0, column=None, split=None, prefer=None)
    picked, pick = [], drawn._pick
    here, again = threading.Event(), threading.Event()

    def note(which: Any) -> Any:
        picked.append((len(which), threading.current_thread().name))
        (again if len(picked) > 1 else here).set()
        return pick(which)

    monkeypatch.setattr(drawn, "_pick", note)
    portions = drawn.portions_ahead(600)
    first = next(portions)
    assert again.wait(10)  # the second is read before it is asked for
    rest = [document for portion in portions for document in portion]
    order = np.random.default_rng(0).permutation(30)
    assert [*first, *rest] == [DOCUMENTS[i] for i in order]
    assert {name for _, name in picked} == {"attlas-text"}
    assert sum(n for n, _ in picked) == 30


def test_reading_ahead_stops_with_its_reader_and_hands_on_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "KEPT", 10)
    path = write(tmp_path, "jsonl", DOCUMENTS)
    drawn = text._Drawn(path, 0, column=None, split=None, prefer=None)
    portions = drawn.portions_ahead(600)
    next(portions)
    portions.close()  # type: ignore[attr-defined]
    assert "attlas-text" not in {thread.name for thread in threading.enumerate()}
    drawn = text._Drawn(path, 0, column=None, split=None, prefer=None)
    path.write_text("damaged")
    with pytest.raises(TextDataError, match="is not JSON"):
        list(drawn.portions_ahead(600))
    assert "attlas-text" not in {thread.name for thread in threading.enumerate()}


def test_a_source_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "jsonl", DOCUMENTS)
    monkeypatch.setattr(text, "KEPT", 10)
    drawn = text._Drawn(path, 0, column=None, split=None, prefer=None)
    write(tmp_path, "jsonl", DOCUMENTS[:3])
    with pytest.raises(TextDataError, match="changed while it was read"):
        list(drawn.portions(10**9))
