"""Text in, token sequences out: documents of any common format, packed into rows of one length."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.data.splits import stratified_order
from attlas.data.text_files import Document, Skipped, read_file
from attlas.data.text_folders import refuse_split, split_files
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
        """The first sequences, of documents in the order that `load_tokens` drew."""
        return TokenDataset.from_tokens(self.tokens[:n_seqs], self.name)

    def split(self, share: float, seed: int = 0) -> tuple[TokenDataset, TokenDataset]:
        """Two disjoint parts, sequences drawn by the seed.

        Raises:
            TextDataError: a part would be empty.
        """
        cut = round(len(self) * share)
        if not 0 < cut < len(self):
            raise TextDataError(f"{len(self)} sequences of '{self.name}' cannot be split {share:.0%}; use more tokens")
        order = torch.from_numpy(stratified_order(len(self), seed=seed))
        first, second = (TokenDataset.from_tokens(self.tokens[rows], self.name) for rows in (order[:cut], order[cut:]))
        return first, second

    def batches(self, batch_size: int, shuffle_seed: int | None = None) -> Sequence[Tensor]:
        """Tokens [≤ batch_size, seq_len] each, in order, or in the order a seed gives."""
        rows = self.tokens
        if shuffle_seed is not None:
            rows = rows[torch.randperm(len(self), generator=torch.Generator().manual_seed(shuffle_seed))]
        return rows.split(batch_size)


def load_tokens(
    source: str | Path,
    tokenizer: Any,
    *,
    seq_len: int = 256,
    n_tokens: int | None = None,
    seed: int = 0,
    column: str | None = None,
    split: str | None = None,
    prefer: str | None = None,
    d_vocab: int | None = None,
) -> TokenDataset:
    """Read, tokenise and pack text.

    Documents are put in an order drawn from the seed, joined with the end-of-text token between them, and cut into
    rows; each row begins with BOS (where the tokenizer has one) and continues the stream where the last row ended.
    Rows of token ids that all have one length are packed already: they are cut to seq_len and used as they are, in the
    seed's order; token ids of other lengths are joined as documents are.

    Args:
        source: "embedded:train", "embedded:val", a text file (documents divided by blank lines), .jsonl, .json, .csv,
            .tsv (these also .gz or .zst), .parquet or .arrow, or a Hugging Face dataset folder.
        tokenizer: a Hugging Face tokenizer; None where the source holds token ids.
        seq_len: tokens a row, BOS included.
        n_tokens: stop after about so many (rounded down to whole rows, at least one); None takes all.
        seed: order of documents.
        column: of the text or token ids; None takes "text", else "input_ids" or "tokens".
        split: of a dataset folder; None takes the only one, or `prefer` of several.
        d_vocab: ids from here on are refused; None takes the tokenizer's length.

    Raises:
        TextDataError: the source is missing, empty, damaged, not UTF-8, or shorter than one row; its column or split
            does not exist; or its token ids are beyond the vocabulary.
    """
    if seq_len < 2:
        raise ConfigError(f"seq_len {seq_len} is too short; use 2 or more")
    if n_tokens is not None and n_tokens < 1:
        raise ConfigError(f"n_tokens {n_tokens} must be 1 or more")
    documents = list(read_documents(source, column=column, split=split, prefer=prefer))
    order = np.random.default_rng(seed).permutation(len(documents))
    name = str(source) if split is None else f"{source} ({split})"
    if isinstance(documents[0], list):
        _check_ids(documents, name, len(tokenizer) if d_vocab is None and tokenizer is not None else d_vocab)
        if len({len(d) for d in documents}) == 1 and len(documents) > 1:
            return TokenDataset.from_tokens(_packed([documents[i] for i in order], seq_len, n_tokens, name), name)
    elif tokenizer is None:
        raise TextDataError(f"'{name}' is text and the model has no tokenizer; give token ids in a column input_ids")
    tokens = _packed_stream([documents[i] for i in order], tokenizer, seq_len, n_tokens, name)
    return TokenDataset.from_tokens(tokens, name)


def _packed_stream(
    documents: Sequence[Document], tokenizer: Any, seq_len: int, n_tokens: int | None, name: str
) -> Tensor:
    """Rows [n, seq_len] of BOS and the stream of all documents, each ended by EOS."""
    bos, eos = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    body = seq_len - (bos is not None)
    n_rows = None if n_tokens is None else max(1, n_tokens // seq_len)
    stream: list[int] = []
    for start in range(0, len(documents), _CHUNK):
        for ids in _ids(documents[start : start + _CHUNK], tokenizer, bos):
            stream.extend(ids)
            if eos is not None and (not ids or ids[-1] != eos or isinstance(documents[0], str)):
                stream.append(eos)
        if n_rows is not None and len(stream) >= n_rows * body:
            break
    available = len(stream) // body
    if available == 0:
        raise TextDataError(f"'{name}' has {len(stream)} tokens, fewer than one sequence of {seq_len}; lower seq_len")
    rows = available if n_rows is None else min(n_rows, available)
    tokens = torch.tensor(stream[: rows * body], dtype=torch.long).view(rows, body)
    if bos is not None:
        tokens = torch.cat([torch.full((rows, 1), bos, dtype=torch.long), tokens], dim=1)
    return tokens


def _ids(documents: Sequence[Document], tokenizer: Any, bos: int | None) -> list[list[int]]:
    if isinstance(documents[0], str):
        found: list[list[int]] = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
        return found
    return [d[1:] if d[0] == bos else d for d in documents if isinstance(d, list)]  # rows begin with BOS anyway


def _packed(rows: Sequence[Document], seq_len: int, n_tokens: int | None, name: str) -> Tensor:
    """Rows of token ids of one length cut into sequences [n, seq_len]; what is left of each row is dropped."""
    tokens = torch.tensor(rows, dtype=torch.long)
    pieces = tokens.shape[1] // seq_len
    if not pieces:
        raise TextDataError(f"'{name}' has rows of {tokens.shape[1]} token ids; lower seq_len {seq_len} to that")
    tokens = tokens[:, : pieces * seq_len].reshape(-1, seq_len)
    return tokens if n_tokens is None else tokens[: max(1, n_tokens // seq_len)]


def _check_ids(documents: Sequence[Document], name: str, d_vocab: int | None) -> None:
    low, high = min(min(d) for d in documents), max(max(d) for d in documents)
    if low < 0 or (d_vocab is not None and high >= d_vocab):  # type: ignore[operator]
        raise TextDataError(
            f"'{name}' holds token ids {low}–{high}, the model knows 0–{(d_vocab or 0) - 1}; it is of another tokenizer"
        )


def read_documents(
    source: str | Path, *, column: str | None = None, split: str | None = None, prefer: str | None = None
) -> Iterator[Document]:
    """Documents of a source, in file order: text, or token ids; arguments as in load_tokens.

    Rows without text (null) are left out, with one warning that counts them.

    Raises:
        TextDataError: missing, empty, damaged, not UTF-8, or without the column or split; or text and token ids mixed.
    """
    skipped, kinds = Skipped(), set()
    for file in _files(source, split, prefer):
        for document in read_file(file, None if str(source) in EMBEDDED else column, skipped):
            if isinstance(document, str) and not document.strip():
                continue
            kinds.add(type(document))
            if len(kinds) > 1:
                raise TextDataError(f"'{source}' holds both text and token ids; name one column with --column")
            yield document
    if not kinds:
        raise TextDataError(f"'{source}' holds no text" + (f" in {skipped.rows} rows" if skipped.rows else ""))
    if skipped.nulls:
        warnings.warn(
            f"{skipped.nulls} of {skipped.rows} rows of '{source}' have no text and are left out", stacklevel=2
        )


def _files(source: str | Path, split: str | None, prefer: str | None) -> list[Path]:
    if str(source).startswith("embedded:"):
        if str(source) not in EMBEDDED:
            raise TextDataError(f"no embedded text '{source}'; there are {', '.join(EMBEDDED)}")
        path = TEXT_DIR / EMBEDDED[str(source)]
    else:
        path = Path(source).expanduser()
    if not path.exists():
        raise TextDataError(
            f"'{path}' does not exist; give a text, JSONL, CSV or Parquet file, a dataset folder, or embedded:val"
        )
    if path.is_dir():
        return split_files(path, split, prefer)
    refuse_split(source, split)
    return [path]
