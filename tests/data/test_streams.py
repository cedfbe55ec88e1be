"""Work done ahead by a thread; documents of far sources by windows; data sets of the hub, from a hub on this machine."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from attlas.data.remote.file import RemoteFile
from attlas.data.remote.hub import is_hub_id
from attlas.data.streams import windows
from attlas.data.streams.ahead import ahead
from attlas.data.text import load_tokens, read_documents
from attlas.errors import TextDataError
from attlas.interp import HookedModel

DOCUMENTS = [f"document {n} says ünïcode " + "and goes on " * (n % 5) for n in range(60)]


# -- ahead -------------------------------------------------------------------------------------------------------------


def test_no_more_than_its_depth_is_made_ahead() -> None:
    made: list[int] = []
    reached = threading.Event()

    def items() -> Iterator[int]:
        for n in range(10):
            made.append(n)
            if n == 3:
                reached.set()
            yield n

    coming = ahead(items(), depth=2)
    assert next(coming) == 0
    assert reached.wait(5)  # 1 and 2 wait, 3 is in the making
    assert not threading.Event().wait(0.1)
    assert made == [0, 1, 2, 3]
    assert list(coming) == list(range(1, 10))


def test_errors_come_where_the_item_would_and_the_thread_ends() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the third shard is damaged")

    coming = ahead(items(), depth=4, name="attlas-test-ahead")
    assert next(coming) == 1
    with pytest.raises(ValueError, match="third shard"):
        next(coming)
    closed = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    coming = ahead(endless(), name="attlas-test-ahead")
    next(coming)
    coming.close()
    assert closed == ["attlas-test-ahead"]
    assert "attlas-test-ahead" not in {thread.name for thread in threading.enumerate()}


# -- windows -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def far() -> Iterator[str]:
    """Six Parquet files of ten documents behind a URL."""
    system = fsspec.filesystem("memory")
    for part in range(6):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": DOCUMENTS[10 * part : 10 * part + 10]}), sink, row_group_size=4)
        system.pipe(f"/attlas-far/train-0000{part}-of-00006.parquet", sink.getvalue().to_pybytes())
    yield "memory://attlas-far"
    system.rm("/attlas-far", recursive=True)


def test_a_small_far_source_gives_the_tokens_of_a_near_one(far: str, tmp_path: Path, gpt2_mini: HookedModel) -> None:
    near = tmp_path / "near.parquet"
    pq.write_table(pa.table({"text": DOCUMENTS}), near)
    for n_tokens in (100, 400, None):
        one, two = (load_tokens(s, gpt2_mini.tokenizer, seq_len=16, n_tokens=n_tokens, seed=3) for s in (far, near))
        assert torch.equal(one.tokens, two.tokens)


def test_no_more_of_a_far_source_is_read_than_is_used(
    far: str, gpt2_mini: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    usual, open_file = windows.Windows._fill, RemoteFile.open
    monkeypatch.setattr(windows, "WINDOW", 300)
    monkeypatch.setattr(RemoteFile, "open", lambda self: opened.append(self.url) or open_file(self))
    held: list[int] = []

    def fill(self: windows.Windows) -> Any:
        found = usual(self)
        held.append(sum(len(document) for _, document in found))
        return found

    monkeypatch.setattr(windows.Windows, "_fill", fill)
    tokenizer = gpt2_mini.tokenizer
    few = load_tokens(far, tokenizer, seq_len=16, n_tokens=64, seed=0)
    assert few.tokens.shape == (4, 16)
    assert len(opened) < 6
    opened.clear()
    with pytest.warns(UserWarning, match=r"memory://attlas-far' ended after [\d,]+ of the 1,000,000 tokens asked for"):
        more = load_tokens(far, tokenizer, seq_len=16, n_tokens=10**6, seed=0)
    assert torch.equal(more.tokens[:4], few.tokens)
    assert sorted(opened) == [f"memory:///attlas-far/train-0000{part}-of-00006.parquet" for part in range(6)]
    assert max(held) < 300 + max(map(len, DOCUMENTS))  # never all documents in memory
    other = load_tokens(far, tokenizer, seq_len=16, n_tokens=64, seed=1)
    assert not torch.equal(other.tokens, few.tokens)
    ends = [e for e in more.tokens.flatten().tolist() if e == tokenizer.eos_token_id]
    assert len(ends) >= len(DOCUMENTS) - 1  # every document once


def test_threads_change_nothing(far: str, gpt2_mini: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW", 300)
    plain = load_tokens(far, gpt2_mini.tokenizer, seq_len=16, n_tokens=900, seed=0)
    monkeypatch.setattr("attlas.data.text.WINDOW", 1)  # read and tokenised by threads
    names: set[str] = set()
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: names.add(self.name) or start(self))
    threaded = load_tokens(far, gpt2_mini.tokenizer, seq_len=16, n_tokens=900, seed=0)
    assert names >= {"attlas-text", "attlas-tokens"}
    assert torch.equal(plain.tokens, threaded.tokens)
    assert not {"attlas-text", "attlas-tokens"} & {thread.name for thread in threading.enumerate()}


def test_token_ids_of_a_far_source_are_checked_in_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW", 60)
    system = fsspec.filesystem("memory")
    rows = [[n % 7] * 8 for n in range(8)] + [[99] * 8]
    system.pipe("/attlas-ids.jsonl", "".join(json.dumps({"input_ids": row}) + "\n" for row in rows).encode())
    assert load_tokens("memory://attlas-ids.jsonl", None, seq_len=4, n_tokens=8, d_vocab=50).tokens.shape == (2, 4)
    with pytest.raises(TextDataError, match="token ids 99–99, the model knows 0–49"):
        load_tokens("memory://attlas-ids.jsonl", None, seq_len=4, n_tokens=10**4, d_vocab=50)
    rows[8] = [3]
    system.pipe("/attlas-ids.jsonl", "".join(json.dumps({"input_ids": row}) + "\n" for row in rows).encode())
    with pytest.raises(TextDataError, match="begins with rows of 8 token ids, others follow"):
        load_tokens("memory://attlas-ids.jsonl", None, seq_len=4, n_tokens=10**4, d_vocab=50)


# -- the hub -----------------------------------------------------------------------------------------------------------


class _Hub(http.server.BaseHTTPRequestHandler):
    """What of the hub's interface reading takes; (revision, path) → bytes in `files`."""

    files: dict[tuple[str, str], bytes]
    asked: list[str]

    def log_message(self, *parts: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        revision = self._revision(self.path.split("/paths-info/")[1])
        self._json([entry for entry in self._tree(revision, "") if entry["path"] in body["paths"]])

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        found = re.match(r"/api/datasets/(\w+/\w+)(?:/(revision|tree)/([^/]+)/?(.*))?$", path)
        file = re.match(r"/datasets/(\w+/\w+)/resolve/([^/]+)/(.*)$", path)
        if (found or file)[1] != "org/name":  # type: ignore[index]
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if file:
            return self._ranged(self.files[self._revision(file[2]), file[3]], file[3])
        assert found is not None
        revision = self._revision(found[3] or "main")
        if revision not in {r for r, _ in self.files}:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if found[2] == "tree":
            return self._json(self._tree(revision, found[4]))
        return self._json({"id": "org/name", "sha": "0" * 40, "private": False, "tags": [], "siblings": []})

    def _revision(self, quoted: str) -> str:
        return quoted.replace("%2F", "/").split("?")[0]

    def _tree(self, revision: str, under: str) -> list[dict[str, Any]]:
        paths = {p: len(data) for (r, p), data in self.files.items() if r == revision and p.startswith(under)}
        folders = {"/".join(p.split("/")[:n]) for p in paths for n in range(1, p.count("/") + 1)}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in sorted(folders)]
        return entries + [{"type": "file", "oid": "0" * 40, "size": n, "path": p} for p, n in paths.items()]

    def _ranged(self, data: bytes, name: str) -> None:
        low, high = map(int, re.findall(r"\d+", self.headers.get("range", f"bytes=0-{len(data) - 1}")))
        part = data[low : high + 1]
        self.asked.append(f"{name} {len(part)}")
        self._send(206, part, {"Content-Range": f"bytes {low}-{low + len(part) - 1}/{len(data)}"})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _parquet(documents: list[str], group: int = 4) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": documents}), sink, row_group_size=group, compression="none")
    found: bytes = sink.getvalue().to_pybytes()
    return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    converted = "refs/convert/parquet"

    class Hub(_Hub):
        files: ClassVar = {
            (converted, "plain/train/0000.parquet"): _parquet(DOCUMENTS[:10]),
            (converted, "plain/train/0001.parquet"): _parquet(DOCUMENTS[10:20]),
            (converted, "plain/test/0000.parquet"): _parquet(DOCUMENTS[20:25]),
            (converted, "large/partial-train/0000.parquet"): _parquet(DOCUMENTS[30:40]),
            ("main", "README.md"): b"# a data set",
            ("main", "data/train-00000-of-00001.jsonl"): json.dumps({"text": "of the repository"}).encode() + b"\n",
        }
        asked: ClassVar = []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        top, constants = f"http://127.0.0.1:{server.server_port}", huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", top)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", top + "/{repo_id}/resolve/{revision}/{filename}")
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield Hub
        server.shutdown()
    huggingface_hub.HfFileSystem.clear_instance_cache()


def test_a_data_set_of_the_hub_by_name(hub: type[_Hub], gpt2_mini: HookedModel) -> None:
    assert list(read_documents("org/name:plain/train")) == DOCUMENTS[:20]
    assert list(read_documents("org/name:plain", split="test")) == DOCUMENTS[20:25]
    assert list(read_documents("org/name:plain", prefer="train")) == DOCUMENTS[:20]
    with pytest.warns(UserWarning, match="only the first part of 'org/name:large/train'"):
        assert list(read_documents("org/name:large/train")) == DOCUMENTS[30:40]
    assert load_tokens("org/name:plain/train", gpt2_mini.tokenizer, seq_len=16, n_tokens=64).tokens.shape == (4, 16)
    for name, said in {
        "org/name": "several configurations: large, plain; name one as org/name:NAME",
        "org/name:plan": "no configuration 'plan': large, plain.*did you mean 'plain'",
        "org/name:plain": "has the splits test, train; name one",
        "org/name:plain/dev": "has no split 'dev'",
        "org/other": "'org/other' is no file here, and of the hub's data sets it does not exist",
    }.items():
        with pytest.raises(TextDataError, match=said):
            list(read_documents(name))
    hub.files = {key: data for key, data in hub.files.items() if key[0] == "main"}  # not converted
    huggingface_hub.HfFileSystem.clear_instance_cache()
    assert list(read_documents("org/name")) == ["of the repository"]


def test_the_hubs_files_are_read_in_pieces(hub: type[_Hub]) -> None:
    large = [f"{n:06d}" * 200 for n in range(12_000)]
    hub.files = {("refs/convert/parquet", "default/train/0000.parquet"): _parquet(large, 500)}
    documents = read_documents("org/name")
    assert next(documents) == large[0]
    documents.close()  # type: ignore[attr-defined]
    read = sum(int(line.split()[1]) for line in hub.asked)
    assert 0 < read < len(hub.files["refs/convert/parquet", "default/train/0000.parquet"]) * 0.7


def test_without_a_network_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    with pytest.raises(TextDataError, match=r"'org/name' is no file here.*check name and network") as said:
        list(read_documents("org/name"))
    assert "\n" not in str(said.value)
    with pytest.raises(TextDataError, match=r"missing\.jsonl' does not exist"):
        list(read_documents("texts/missing.jsonl"))
    assert [is_hub_id(name) for name in ("a/b/c", "a/b:c/d/e", "./a", "a:b", "a/b.parquet", "a/b.v2")] == [
        *[False] * 5,
        True,
    ]
