"""Text behind a URL: the same tokens as from disk, for every kind of file, in fsspec's memory and from a local server."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attlas.data.remote.file import RemoteFile, is_remote
from attlas.data.text import read_documents
from attlas.errors import MissingExtraError, TextDataError

DOCUMENTS = [f"document {n} says ünïcode" for n in range(40)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = "".join(f'{{"text": "{text}"}}\n' for text in DOCUMENTS)
    (tmp_path / "plain.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "packed.csv.zst").write_bytes(
        pa.compress(("text\n" + "\n".join(DOCUMENTS)).encode(), "zstd", asbytes=True)
    )
    (tmp_path / "paragraphs.txt").write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    table = pa.table({"text": DOCUMENTS})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=7)
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return tmp_path


@pytest.fixture
def memory(folder: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for file in folder.iterdir():
        system.pipe(f"/attlas-test/{file.name}", file.read_bytes())
    for n, split in enumerate(("train", "test")):
        system.pipe(f"/attlas-test/set/data/{split}-00000-of-00001.jsonl", f'{{"text": "of {split} {n}"}}\n'.encode())
    system.pipe("/attlas-test/set/dataset_info.json", b"{}")
    yield "memory://attlas-test"
    system.rm("/attlas-test", recursive=True)


NAMES = ("plain.jsonl", "packed.jsonl.gz", "packed.csv.zst", "paragraphs.txt", "rows.parquet", "rows.arrow")


@pytest.mark.parametrize("name", NAMES)
def test_a_url_holds_what_the_file_does(memory: str, folder: Path, name: str) -> None:
    assert list(read_documents(f"{memory}/{name}")) == list(read_documents(folder / name)) == DOCUMENTS


def test_a_folder_has_its_splits(memory: str) -> None:
    assert list(read_documents(f"{memory}/set", split="test")) == ["of test 1"]
    assert list(read_documents(f"{memory}/set", prefer="train")) == ["of train 0"]
    with pytest.raises(TextDataError, match="has the splits test, train"):
        list(read_documents(f"{memory}/set"))


def test_a_damaged_remote_file_is_named(memory: str) -> None:
    fsspec.filesystem("memory").pipe("/attlas-test/cut.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 900)[:40])
    with pytest.raises(TextDataError, match=r"cut\.jsonl\.gz' cannot be read"):
        list(read_documents(f"{memory}/cut.jsonl.gz"))


def test_only_what_is_needed_of_parquet_is_read(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By row group: the first document comes before the whole file was read."""
    table = pa.table({"text": [f"{n:06d}" * 40 for n in range(20_000)], "other": [b"x" * 200] * 20_000})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=1_000, compression="none", use_dictionary=False)
    whole = sink.getvalue().to_pybytes()
    fsspec.filesystem("memory").pipe("/attlas-test/large.parquet", whole)
    read = 0
    usual = RemoteFile.open

    def counting(self: RemoteFile) -> Any:
        file: Any = usual(self)
        original = file.read

        def count(n: int = -1) -> bytes:
            nonlocal read
            found: bytes = original(n)
            read += len(found)
            return found

        file.read = count
        return file

    monkeypatch.setattr(RemoteFile, "open", counting)
    documents = read_documents(f"{memory}/large.parquet")
    assert next(documents) == "000000" * 40
    assert 0 < read < len(whole) / 4
    documents.close()


def test_a_server_on_this_machine(folder: Path) -> None:
    pytest.importorskip("aiohttp")
    handler = partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        top = f"http://127.0.0.1:{server.server_port}"
        assert list(read_documents(f"{top}/plain.jsonl")) == DOCUMENTS
        with pytest.raises(TextDataError, match="missing"):
            list(read_documents(f"{top}/missing.jsonl"))
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *parts: Any) -> None: ...


def test_what_is_no_url() -> None:
    assert [is_remote(s) for s in ("s3://a/b", "embedded:val", "C:\\x", "/tmp/a", Path("s3:/a"))] == [True] + [
        False
    ] * 4


def test_bad_input(memory: str) -> None:
    with pytest.raises(TextDataError, match="does not exist"):
        list(read_documents(f"{memory}/nothing.jsonl"))
    with pytest.raises(TextDataError, match=r"nowhere://a.*cannot be reached"):
        list(read_documents("nowhere://a/b.jsonl"))
    with pytest.raises(TextDataError, match="without splits"):
        list(read_documents(f"{memory}/plain.jsonl", split="train"))


def test_a_protocol_may_need_a_package() -> None:
    try:
        import s3fs  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="s3"):
            list(read_documents("s3://bucket/part.jsonl"))
