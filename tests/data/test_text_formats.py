"""Every format and layout a text may come in, and every damaged one as a line."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attlas.data.text import TokenDataset, load_tokens, read_documents
from attlas.errors import TextDataError

DOCUMENTS = ["The cat sat\u2028on the mat.", 'A "second" document,\x85é and 漢字.', "Third\tline\nof three."]


class Letters:
    bos_token_id, eos_token_id = 1, 2

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}

    def __len__(self) -> int:
        return 300


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)


def table_csv(delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text"], *[[i, d] for i, d in enumerate(DOCUMENTS)]])
    return out.getvalue().encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


RECORDS = [{"text": d} for d in DOCUMENTS]
FILES: dict[str, bytes] = {
    "a.jsonl": lines(*RECORDS),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(*RECORDS),
    "crlf.jsonl": lines(*RECORDS).replace(b"\n", b"\r\n"),
    "a.ndjson": lines(*RECORDS),
    "pretty.json": "\n".join(json.dumps(r, indent=2) for r in RECORDS).encode(),
    "array.json": json.dumps(RECORDS, indent=1).encode(),
    "strings.json": json.dumps(DOCUMENTS).encode(),
    "array.jsonl": json.dumps(RECORDS).encode(),
    "a.csv": table_csv(","),
    "bom.csv": b"\xef\xbb\xbf" + table_csv(","),
    "a.tsv": table_csv("\t"),
    "a.jsonl.gz": gzip.compress(lines(*RECORDS)),
    "a.csv.gz": gzip.compress(table_csv(",")),
    "a.txt.gz": gzip.compress("\n\n".join(DOCUMENTS).encode()),
    "a.jsonl.zst": zstd(lines(*RECORDS)),
    "bom.txt": b"\xef\xbb\xbf" + "\r\n\r\n".join(DOCUMENTS).encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_documents(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert list(read_documents(tmp_path / name)) == DOCUMENTS


def columns(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather", "jsonl", "csv"])
def test_rows_without_text_are_counted_alike(suffix: str, tmp_path: Path) -> None:
    values = ["one", None, "two", None]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_bytes(lines({"text": "one"}, {"text": None}, {"text": "two"}, {"other": 1}))
    elif suffix == "csv":
        path.write_text("id,text\n1,one\n2,\n3,two\n4\n")
    else:
        columns(path, pa.table({"text": values, "id": range(4)}))
    with pytest.warns(UserWarning, match="2 of 4 rows of .* have no text and are left out"):
        assert list(read_documents(path)) == ["one", "two"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl", "csv"])
def test_a_column_is_named(suffix: str, tmp_path: Path) -> None:
    table = {"body": ["a", "b"], "label": ["x", "y"]}
    rows = [{"body": "a", "label": "x"}, {"body": "b", "label": "y"}]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_bytes(lines(*rows))
    elif suffix == "csv":
        path.write_text("body,label\na,x\nb,y\n")
    else:
        columns(path, pa.table(table))
    assert list(read_documents(path, column="body")) == ["a", "b"]
    with pytest.raises(TextDataError, match=r"no column 'text', only body, label; name the text's with --column"):
        list(read_documents(path))
    with pytest.raises(TextDataError, match=r"no column 'bodi'.*did you mean 'body'"):
        list(read_documents(path, column="bodi"))


MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("messages", MESSAGES, "column 'messages' holds"),
        ("text", ["a", "b"], "column 'text' holds"),
        ("text", 3, "column 'text' holds"),
        ("tokens", ["a", "b"], "column 'tokens' holds"),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_columns_of_other_things_are_refused_by_name(
    suffix: str, column: str, value: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_bytes(lines({column: value}))
    else:
        columns(path, pa.table({column: [value]}))
    with pytest.raises(TextDataError, match=f"{message}.*neither text nor token ids"):
        list(read_documents(path, column=column))


GOOD = lines(*RECORDS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "holds no text"),
        ("empty.csv", b"", "holds no text"),
        ("header.csv", b"id,text\n", "holds no text"),
        ("empty.json", b"[]", "holds no text"),
        ("nulls.jsonl", b'{"text": null}\n', "holds no text in 1 rows"),
        ("empty.parquet", b"", "cannot be read as Parquet"),
        ("empty.arrow", b"", "cannot be read as Arrow"),
        ("noise.parquet", b"PAR1" + bytes(range(200)) + b"PAR1", "cannot be read as Parquet"),
        ("noise.arrow", bytes(range(250)), "cannot be read as Arrow"),
        ("cut.jsonl.gz", gzip.compress(GOOD)[:-9], "cut off or damaged"),
        ("noise.gz", b"\x1f\x8b" + bytes(50), "cut off or damaged"),
        ("not.jsonl.gz", GOOD, "cut off or damaged"),
        ("noise.jsonl.zst", b"noise", "cut off or damaged"),
        ("utf16.jsonl", GOOD.decode().encode("utf-16"), "not UTF-8"),
        ("numbers.jsonl", b"1\n2\n", "line 1 holds no object"),
        ("comma.jsonl", b'{"text": "a"},\n{"text": "b"}\n', "line 1 is not JSON"),
        ("deep.json", b"[" * 100_000, "nested too deeply|is not JSON"),
    ],
)
def test_bad_files_are_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextDataError, match=message) as caught:
        list(read_documents(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_flipped_and_cut_files_are_one_line_or_whole(suffix: str, tmp_path: Path) -> None:
    path = columns(tmp_path / f"a.{suffix}", pa.table({"text": [f"document {i} of many" for i in range(500)]}))
    content = path.read_bytes()
    bad = tmp_path / f"bad.{suffix}"
    for at in range(5, len(content), len(content) // 40):
        for damaged in (content[:at], content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]):
            bad.write_bytes(damaged)
            with contextlib.suppress(TextDataError):  # anything else fails the test
                list(read_documents(bad))


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud83d"}\n{"text": "\\ud83d\\ude00"}\n')
    assert list(read_documents(tmp_path / "a.jsonl")) == ["a\ufffd", "😀"]


# -- token ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["input_ids", "tokens"])
@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl"])
def test_packed_token_ids_are_used_as_they_are(name: str, suffix: str, tmp_path: Path) -> None:
    rows = [[1, *range(10 * i, 10 * i + 7)] for i in range(5)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_bytes(lines(*({name: r, "attention_mask": [1] * 8} for r in rows)))
    else:
        columns(path, pa.table({name: rows, "attention_mask": [[1] * 8] * 5}))
    found = load_tokens(path, Letters(), seq_len=8)
    assert sorted(found.tokens.tolist()) == rows
    halves = load_tokens(path, None, seq_len=4, d_vocab=60).tokens.tolist()
    assert sorted(halves) == sorted(r[k : k + 4] for r in rows for k in (0, 4))
    assert len(load_tokens(path, Letters(), seq_len=8, n_tokens=16)) == 2
    with pytest.raises(TextDataError, match="rows of 8 token ids; lower seq_len 9"):
        load_tokens(path, Letters(), seq_len=9)
    with pytest.raises(TextDataError, match="token ids 0–46, the model knows 0–45"):
        load_tokens(path, Letters(), seq_len=8, d_vocab=46)


def test_token_ids_of_documents_are_joined_as_text_is(tmp_path: Path) -> None:
    words = ["alpha", "be", "gamma ray"]
    (tmp_path / "text.jsonl").write_bytes(lines(*({"text": w} for w in words)))
    ids = [[1, *map(ord, words[0])], [*map(ord, words[1]), 2], [*map(ord, words[2])]]  # with BOS, with EOS, bare
    (tmp_path / "ids.jsonl").write_bytes(lines(*({"input_ids": r} for r in ids)))
    a, b = (load_tokens(tmp_path / f"{k}.jsonl", Letters(), seq_len=6) for k in ("text", "ids"))
    assert a.tokens.tolist() == b.tokens.tolist()
    with pytest.raises(TextDataError, match="has no tokenizer"):
        load_tokens(tmp_path / "text.jsonl", None, seq_len=6)
    (tmp_path / "mixed.jsonl").write_bytes(lines({"text": "a"}, {"text": [1, 2]}))
    with pytest.raises(TextDataError, match="both text and token ids"):
        load_tokens(tmp_path / "mixed.jsonl", Letters(), seq_len=6)


def test_text_splits_are_disjoint_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*({"input_ids": [i, i]} for i in range(20))))
    data = load_tokens(tmp_path / "a.jsonl", None, seq_len=2)
    first, second = data.split(0.25, seed=1)
    assert (len(first), len(second)) == (5, 15)
    assert sorted(first.tokens[:, 0].tolist() + second.tokens[:, 0].tolist()) == list(range(20))
    assert data.split(0.25, seed=2)[0].hash != first.hash == data.split(0.25, seed=1)[0].hash
    assert isinstance(first, TokenDataset)
    with pytest.raises(TextDataError, match="cannot be split"):
        data.take(1).split(0.5)


# -- dataset folders ---------------------------------------------------------------------------------------------------


def text(path: Path, *values: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_bytes(lines(*({"text": v} for v in values)))
    else:
        columns(path, pa.table({"text": list(values)}))


def test_a_saved_data_set_is_read_as_datasets_reads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {"train": ["a", "b", "c"], "test": ["d", "e"]}
    whole = datasets.DatasetDict({k: datasets.Dataset.from_dict({"text": v}) for k, v in parts.items()})
    whole.save_to_disk(str(tmp_path / "both"))
    whole["train"].save_to_disk(str(tmp_path / "one"), num_shards=2)
    opened = datasets.load_from_disk(str(tmp_path / "one"))
    opened.map(lambda row: {"text": row["text"] + "!"})  # leaves a cache-….arrow beside the data
    assert list((tmp_path / "one").glob("cache-*.arrow"))
    assert list(read_documents(tmp_path / "one")) == opened["text"][:]
    for split, values in parts.items():
        assert list(read_documents(tmp_path / "both", split=split)) == values
    assert list(read_documents(tmp_path / "both", prefer="train")) == parts["train"]
    with pytest.raises(TextDataError, match="has the splits train, test; name one with --split"):
        list(read_documents(tmp_path / "both"))
    with pytest.raises(TextDataError, match="no split 'tests'; there is train, test; did you mean 'test'"):
        list(read_documents(tmp_path / "both", split="tests"))


@pytest.mark.parametrize(
    "layout",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("wiki-train-00000-of-00002.arrow", "wiki-train-00001-of-00002.arrow", "wiki-test.arrow"),
        ("default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"),
        ("train_a.jsonl", "train_b.jsonl", "my.test.jsonl"),
    ],
)
def test_layouts_of_the_hub(layout: tuple[str, ...], tmp_path: Path) -> None:
    for name, value in zip(layout, ("a", "b", "t"), strict=True):
        text(tmp_path / name, value)
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    text(tmp_path / "cache-1234.arrow", "stale")
    text(tmp_path / ".cache" / "x.parquet", "hidden")
    assert list(read_documents(tmp_path, split="train")) == ["a", "b"]
    assert list(read_documents(tmp_path, split="test")) == ["t"]
    assert load_tokens(tmp_path, Letters(), seq_len=2, split="test").name == f"{tmp_path} (test)"
    with pytest.raises(TextDataError, match=r"has the splits .*name one with --split"):
        list(read_documents(tmp_path))


def test_caches_hold_one_data_set_or_are_refused(tmp_path: Path) -> None:
    hub = tmp_path / "datasets--a--b"
    for name, value in (("old", "stale"), ("new", "fresh")):
        text(hub / "snapshots" / name / "data" / "train-00000-of-00001.parquet", value)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("new")
    assert list(read_documents(hub)) == ["fresh"]
    cache = tmp_path / "wiki"
    for version, value in (("1.0", "stale"), ("2.0", "fresh")):
        text(cache / version / "wiki-train.arrow", value)
        (cache / version / "dataset_info.json").write_text("{}")
    with pytest.raises(TextDataError, match=r"holds 2 data sets; give one of them, such as .*1\.0'"):
        list(read_documents(cache))
    assert list(read_documents(cache / "2.0")) == ["fresh"]
    text(tmp_path / "outer" / "inner" / "wiki-train.arrow", "inner")
    (tmp_path / "outer" / "inner" / "dataset_info.json").write_text("{}")
    assert list(read_documents(tmp_path / "outer")) == ["inner"]


def test_other_folders(tmp_path: Path) -> None:
    text(tmp_path / "plain" / "part-1.jsonl", "a")
    text(tmp_path / "plain" / "part-2.jsonl", "b")
    assert list(read_documents(tmp_path / "plain")) == ["a", "b"]
    with pytest.raises(TextDataError, match=r"no split 'train'; there is \(files of no split\)"):
        list(read_documents(tmp_path / "plain", split="train"))
    text(tmp_path / "plain" / "part-3.parquet", "c")
    with pytest.raises(TextDataError, match=r"holds .jsonl and .parquet files; give one"):
        list(read_documents(tmp_path / "plain"))
    text(tmp_path / "val" / "x-validation-00000-of-00001.parquet", "v")
    text(tmp_path / "val" / "x-train-00000-of-00001.parquet", "t")
    assert list(read_documents(tmp_path / "val", split="val")) == ["v"]
    with pytest.raises(TextDataError, match="is one text, without splits"):
        list(read_documents(tmp_path / "plain" / "part-1.jsonl", split="train"))
    (tmp_path / "odd").mkdir()
    for content, message in (
        ("{", "cannot be read"),
        ("[]", "no JSON object"),
        ("{}", "names no data files"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "lacks gone.arrow"),
    ):
        (tmp_path / "odd" / "state.json").write_text(content)
        with pytest.raises(TextDataError, match=message):
            list(read_documents(tmp_path / "odd"))
