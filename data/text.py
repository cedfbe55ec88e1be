"""Text in, token sequences out: documents from any common file, packed into rows of one length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.data.workspace import Ref
from attlas.errors import ConfigError, TextDataError

TEXT_DIR = Path(__file__).resolve().parent / "text"
EMBEDDED = {"embedded:train": "train.jsonl", "embedded:val": "val.jsonl"}
_CHUNK = 256  # documents tokenised at a time


@dataclass(frozen=True)
class TokenDataset:
    """Packed token sequences.

    Attributes:
        tokens: int64 [n_seqs, seq_len]; column 0 is BOS where the tokenizer has one.
        name: where they came from.
        hash: 16 hex digits over the tokens.
    """

    tokens: Tensor
    name: str
    hash: str

    @classmethod
    def from_tokens(cls, tokens: Tensor, name: str) -> TokenDataset:
        """Wrap a tensor int64 [n_seqs, seq_len], hashing it."""
        tokens = tokens.contiguous()
        shape = str(tuple(tokens.shape)).encode()
        return cls(tokens, name, hashlib.sha256(shape + tokens.numpy().tobytes()).hexdigest()[:16])

    @property
    def ref(self) -> Ref:
        return Ref(self.name, self.hash)

    @property
    def n_tokens(self) -> int:
        return self.tokens.numel()

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def take(self, n_seqs: int) -> TokenDataset:
        """The first sequences."""
        return TokenDataset.from_tokens(self.tokens[:n_seqs], self.name)

    def batches(self, batch_size: int, shuffle_seed: int | None = None) -> Sequence[Tensor]:
        """Tokens [≤ batch_size, seq_len] each, in order, or in the order a seed gives."""
        rows = self.tokens
        if shuffle_seed is not None:
            rows = rows[torch.randperm(len(self), generator=torch.Generator().manual_seed(shuffle_seed))]
        return rows.split(batch_size)


def load_tokens(
    source: str | Path, tokenizer: Any, *, seq_len: int = 256, n_tokens: int | None = None, seed: int = 0
) -> TokenDataset:
    """Read, tokenise and pack text.

    Documents are put in an order drawn from the seed, joined with the end-of-text token between them, and cut into
    rows; each row begins with BOS (where the tokenizer has one) and continues the stream where the last row ended.

    Args:
        source: "embedded:train", "embedded:val", a JSONL ({"text": …} a line), Parquet (column "text") or plain text
            file (documents divided by blank lines), or a Hugging Face dataset folder.
        tokenizer: a Hugging Face tokenizer.
        seq_len: tokens a row, BOS included.
        n_tokens: stop after about so many (rounded down to whole rows, at least one); None takes all.
        seed: order of documents.

    Raises:
        TextDataError: the source is missing, empty, not UTF-8, or shorter than one row.
    """
    if seq_len < 2:
        raise ConfigError(f"seq_len {seq_len} is too short; use 2 or more")
    documents = list(read_documents(source))
    order = np.random.default_rng(seed).permutation(len(documents))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    body = seq_len - (bos is not None)
    n_rows = None if n_tokens is None else max(1, n_tokens // seq_len)
    stream: list[int] = []
    for start in range(0, len(order), _CHUNK):
        chunk = [documents[i] for i in order[start : start + _CHUNK]]
        for ids in tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]:
            stream.extend(ids)
            if eos is not None:
                stream.append(eos)
        if n_rows is not None and len(stream) >= n_rows * body:
            break
    available = len(stream) // body
    if available == 0:
        raise TextDataError(f"'{source}' has {len(stream)} tokens, fewer than one sequence of {seq_len}; lower seq_len")
    rows = available if n_rows is None else min(n_rows, available)
    tokens = torch.tensor(stream[: rows * body], dtype=torch.long).view(rows, body)
    if bos is not None:
        tokens = torch.cat([torch.full((rows, 1), bos, dtype=torch.long), tokens], dim=1)
    return TokenDataset.from_tokens(tokens, str(source))


def read_documents(source: str | Path) -> Iterator[str]:
    """Documents of a source, in file order; see load_tokens for what a source may be.

    Raises:
        TextDataError: missing, empty, not UTF-8, or without a text column.
    """
    if str(source).startswith("embedded:"):
        if str(source) not in EMBEDDED:
            raise TextDataError(f"no embedded text '{source}'; there are {', '.join(EMBEDDED)}")
        path = TEXT_DIR / EMBEDDED[str(source)]
    else:
        path = Path(source).expanduser()
    if not path.exists():
        raise TextDataError(
            f"'{path}' does not exist; give a text, JSONL or Parquet file, a dataset folder, or embedded:val"
        )
    found = False
    for document in _documents(path):
        if document.strip():
            found = True
            yield document
    if not found:
        raise TextDataError(f"'{path}' holds no text")


def _documents(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted([*path.rglob("*.arrow"), *path.rglob("*.parquet"), *path.rglob("*.jsonl")])
        if not files:
            raise TextDataError(f"folder '{path}' holds no .arrow, .parquet or .jsonl file")
        for file in files:
            yield from _documents(file)
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from _column(pq.read_table(path), path)
    elif path.suffix == ".arrow":
        import pyarrow as pa

        with pa.memory_map(str(path)) as source:
            yield from _column(pa.ipc.open_stream(source).read_all(), path)
    elif path.suffix in (".jsonl", ".json"):
        yield from _json_lines(path)
    else:
        yield from (part.strip() for part in _read_utf8(path).split("\n\n"))


def _column(table: Any, path: Path) -> Iterator[str]:
    if "text" not in table.column_names:
        raise TextDataError(f"'{path}' has no column 'text', only {table.column_names}")
    for value in table.column("text"):
        if (text := value.as_py()) is not None:
            yield text


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextDataError(
            f"'{path}' is not UTF-8 (byte {error.start}); convert it, for example with iconv"
        ) from error


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read_utf8(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise TextDataError(f"'{path}' line {number} is not JSON ({error.msg})") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise TextDataError(f"'{path}' line {number} has no string under 'text'")
        yield record["text"]
