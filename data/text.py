"""Text in, token sequences out: documents of any common format, packed into rows of one length."""

from __future__ import annotations

import contextlib
import warnings
from array import array
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from attlas.data.dataset import Dataset, content_hash
from attlas.data.streams.ahead import ahead
from attlas.data.streams.documents import is_far, numbered, read_documents, source_files
from attlas.data.streams.windows import WINDOW, Windows
from attlas.data.text_files import Document
from attlas.data.tokenizing import begun, bos_of, renderer, without_bos
from attlas.errors import AttlasError, ConfigError, TextDataError

_CHUNK = 256  # documents tokenised at a time
KEPT = 1 << 26  # characters, or token ids, of documents that may be in memory
CHARACTERS = 6  # of text looked up for each token wanted, at first


@dataclass(frozen=True)
class TokenDataset(Dataset):
    """Token sequences: packed, or one document a row and padding behind it.

    Attributes:
        tokens: int64 [n_seqs, seq_len]; column 0 is BOS where the tokenizer has one.
        name: where they came from.
        hash: 16 hex digits over the tokens (and the mask).
        mask: bool [n_seqs, seq_len], True where a token is text; None of packed rows, which are all text. Padding follows
            the text, so that no text token of a causal model sees it and its numbers are those of the document alone.
    """

    _THINGS: ClassVar[str] = "sequences"
    _ERROR: ClassVar[type[AttlasError]] = TextDataError

    tokens: Tensor
    name: str
    hash: str
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        if self.mask.shape != self.tokens.shape or self.mask.dtype != torch.bool:
            raise TextDataError(
                f"the mask of '{self.name}' is {self.mask.dtype} {tuple(self.mask.shape)}, its tokens are "
                f"{tuple(self.tokens.shape)}; give one bool a token"
            )
        if bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any()):
            raise TextDataError(f"'{self.name}' has padding in front of text; put the padding behind it")
        if not bool(self.mask[:, :2].all()):
            raise TextDataError(
                f"'{self.name}' has a row of fewer than two tokens, which predicts nothing; leave it out"
            )

    @classmethod
    def from_tokens(cls, tokens: Tensor, name: str, mask: Tensor | None = None) -> TokenDataset:
        """Wrap a tensor int64 [n_seqs, seq_len], hashing it; a mask without padding is none.

        Raises:
            TextDataError: the mask does not fit, or padding stands in front of text.
        """
        mask = None if mask is None or bool(mask.all()) else mask.contiguous()
        return cls(tokens.contiguous(), name, content_hash(tokens, mask), mask)

    @classmethod
    def padded(cls, documents: Sequence[Sequence[int]], name: str, pad: int = 0) -> TokenDataset:
        """One document of token ids a row, padded behind to the longest.

        Raises:
            TextDataError: no document, or one of fewer than two tokens.

        Example:
            >>> from attlas.data.text import TokenDataset
            >>> data = TokenDataset.padded([[0, 5, 6], [0, 7]], "two documents")
            >>> data.tokens.tolist(), data.n_tokens
            ([[0, 5, 6], [0, 7, 0]], 5)
        """
        if not documents:
            raise TextDataError(f"'{name}' holds no document; give one or more")
        longest = max(map(len, documents))
        tokens = torch.tensor([[*d, *[pad] * (longest - len(d))] for d in documents], dtype=torch.long)
        lengths = torch.tensor([len(d) for d in documents])
        return cls.from_tokens(tokens, name, torch.arange(longest) < lengths[:, None])

    @property
    def tensor(self) -> Tensor:
        return self.tokens

    @property
    def labels(self) -> None:
        """None: text is its own target."""
        return

    @property
    def class_names(self) -> None:
        return

    @property
    def n_tokens(self) -> int:
        """Tokens of text, BOS included, padding not."""
        return self.tokens.numel() if self.mask is None else int(self.mask.sum())

    def _part(self, rows: Tensor) -> TokenDataset:
        return TokenDataset.from_tokens(self.tokens[rows], self.name, None if self.mask is None else self.mask[rows])


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
    packed: bool = True,
    chat: bool = False,
) -> TokenDataset:
    """Read, tokenise and pack text.

    Documents are put in an order drawn from the seed, joined with the end-of-text token between them, and cut into
    rows; each row begins with BOS (where `bos_of` has one) and continues the stream where the last row ended.
    Rows of token ids that all have one length are packed already: they are cut to seq_len and used as they are, in the
    seed's order; token ids of other lengths are joined as documents are.

    Args:
        source: "embedded:train", "embedded:val", a text file (documents divided by blank lines), .jsonl, .json, .csv,
            .tsv (these also .gz or .zst), .parquet or .arrow, or a Hugging Face dataset folder; the URL of one that fsspec
            reads; or a data set of the hub as "org/name", "org/name:config" or "org/name:config/split". Of the last two no
            more is read than n_tokens need, in an order of their own (`streams.windows`).
        tokenizer: a Hugging Face tokenizer; None where the source holds token ids.
        seq_len: tokens a row, BOS included.
        n_tokens: stop after about so many (rounded down to whole rows, at least one); None takes all.
        seed: order of documents.
        column: of the text or token ids; None takes "text", else "input_ids" or "tokens".
        split: of a dataset folder; None takes the only one, or `prefer` of several.
        d_vocab: ids from here on are refused; None takes the tokenizer's length.
        packed: False gives every document a row of its own, BOS to end-of-text, cut at seq_len and padded behind.
        chat: documents are conversations, written by the tokenizer's chat template: lists of messages in a column "messages"
            (`column` names another), or texts, each one message of the user's.

    Raises:
        TextDataError: the source is missing, empty, damaged, not UTF-8, or shorter than one row; its column or split
            does not exist; its token ids are beyond the vocabulary; or a conversation is none.
        UnsupportedModelError: `chat`, and the tokenizer has no chat template.
    """
    if seq_len < 2:
        raise ConfigError(f"seq_len {seq_len} is too short; use 2 or more")
    if n_tokens is not None and n_tokens < 1:
        raise ConfigError(f"n_tokens {n_tokens} must be 1 or more")
    name = str(source) if split is None else f"{source} ({split})"
    render = renderer(tokenizer, name) if chat else None
    drawn = _drawn(source, seed, n_tokens, column=column, split=split, prefer=prefer, chat=render)
    if drawn.ids is not None:
        known = len(tokenizer) if d_vocab is None and tokenizer is not None else d_vocab
        _check_ids(drawn.ids, name, known)
        if isinstance(drawn, Windows):
            drawn.check = lambda ids: _check_ids(ids, name, known)
        if packed and len(set(drawn.sizes)) == 1 and len(drawn.sizes) > 1:
            return TokenDataset.from_tokens(_packed(drawn, seq_len, n_tokens, name), name)
    elif tokenizer is None:
        raise TextDataError(
            f"'{name}' is text and the model has no tokenizer; give token ids in a column input_ids (JSONL, Parquet), or put "
            "its tokenizer.json beside its weights"
        )
    if not packed:
        return TokenDataset.padded(*_one_a_row(drawn, tokenizer, seq_len, n_tokens, name))
    return TokenDataset.from_tokens(_packed_stream(drawn, tokenizer, seq_len, n_tokens, name), name)


class _Drawn:
    """Documents in the order that a seed draws, of which no more than asked for are in memory.

    The source is read once for how many and how long they are; then the first of the order are picked out of it, in as many
    passes as it takes. A source of few characters is kept from the first pass.

    Attributes:
        sizes: characters, or token ids, of each document in file order.
        ids: the least and the largest token id; None of text.
    """

    def __init__(self, source: str | Path, seed: int, **where: Any) -> None:
        self._read = lambda warn: read_documents(source, warn=warn, **where)
        self._name = str(source)
        self.sizes: array[int] = array("q")
        self.ids: tuple[int, int] | None = None
        self._kept: list[Document] | None = []
        self._stopped = False
        total = 0
        for document in self._read(True):
            self.sizes.append(len(document))
            total += len(document)
            if isinstance(document, list):
                low, high = self.ids or (document[0], document[0])
                self.ids = min(low, min(document)), max(high, max(document))
            if self._kept is not None:
                self._kept.append(document)
                self._kept = self._kept if total <= KEPT else None
        self.order = np.random.default_rng(seed).permutation(len(self.sizes))

    def portions(self, size: int) -> Iterator[list[Document]]:
        """The documents in order, about `size` characters or ids at a time."""
        sizes, start = np.frombuffer(self.sizes, dtype=np.int64)[self.order], 0
        ends = sizes.cumsum()
        while start < len(sizes) and not self._stopped:
            stop = int(np.searchsorted(ends, ends[start] - sizes[start] + size)) + 1
            yield self._pick(self.order[start:stop])
            start = stop

    def portions_ahead(self, size: int) -> Iterator[list[Document]]:
        """`portions`, the next one read by a thread while this one is used."""
        portions = ahead(self.portions(size), name="attlas-text")
        try:
            yield from portions
        finally:
            self._stopped = True  # the thread ends at its next document, or portion
            portions.close()

    def _pick(self, which: np.ndarray) -> list[Document]:
        if self._kept is not None:
            return [self._kept[i] for i in which]
        place, found = {int(i): at for at, i in enumerate(which)}, {}
        for i, document in enumerate(self._read(False)):
            if self._stopped:
                return []
            if i in place:
                found[place[i]] = document
                if len(found) == len(place):
                    return [found[at] for at in range(len(found))]
        raise TextDataError(f"'{self._name}' changed while it was read; read it again")


def _drawn(source: str | Path, seed: int, n_tokens: int | None, **where: Any) -> _Drawn | Windows:
    """A source's documents in the seed's order; of one far away no more is read than is wanted."""
    if n_tokens is None or not is_far(source):
        return _Drawn(source, seed, **where)
    files = source_files(source, where["split"], where["prefer"])

    def read(order: Sequence[int]) -> Iterator[tuple[int, Document]]:
        return numbered([(n, files[n]) for n in order], source, where["column"], True, where["chat"])

    return Windows(files, read, seed, str(source))


def _one_a_row(
    drawn: _Drawn | Windows, tokenizer: Any, seq_len: int, n_tokens: int | None, name: str
) -> tuple[list[list[int]], str, int]:
    """(rows, name, padding): each document as BOS, text and EOS, as many from the first on as n_tokens hold."""
    bos = bos_of(tokenizer)
    eos, pad = (getattr(tokenizer, f"{kind}_token_id", None) for kind in ("eos", "pad"))
    rows: list[list[int]] = []
    left = n_tokens
    for documents in drawn.portions(KEPT if n_tokens is None else min(KEPT, n_tokens * CHARACTERS)):
        for start in range(0, len(documents), _CHUNK):
            for ids in _ids(documents[start : start + _CHUNK], tokenizer, bos):
                ended = ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
                row = begun(ended, bos)[:seq_len]
                left = None if left is None else left - len(row)
                if left is not None and left < 0 and rows:
                    return rows, name, pad if pad is not None else (eos or 0)
                rows += [row] if len(row) > 1 else []  # one token predicts nothing
    if not rows:
        raise TextDataError(f"'{name}' has no document of two tokens or more; give longer ones")
    return rows, name, pad if pad is not None else (eos or 0)


def _packed_stream(drawn: _Drawn | Windows, tokenizer: Any, seq_len: int, n_tokens: int | None, name: str) -> Tensor:
    """Rows [n, seq_len] of BOS and the stream of all documents, each ended by EOS."""
    bos, eos = bos_of(tokenizer), getattr(tokenizer, "eos_token_id", None)
    body = seq_len - (bos is not None)
    n_rows = None if n_tokens is None else max(1, n_tokens // seq_len)
    stream: array[int] = array("q")
    wanted = KEPT if n_rows is None else n_rows * body * CHARACTERS
    # where one portion is expected to do, the next one is not read; where many come, a thread reads and another tokenises
    many = wanted >= (WINDOW if isinstance(drawn, Windows) else KEPT)
    chunks = _tokenised(drawn.portions_ahead(wanted) if many else drawn.portions(wanted), tokenizer, bos)
    with contextlib.closing(ahead(chunks, depth=8, name="attlas-tokens") if many else chunks) as coming:
        for chunk in coming:
            for ids in chunk:
                stream.extend(ids)
                if eos is not None and ids[-1:] != [eos]:
                    stream.append(eos)
            if n_rows is not None and len(stream) >= n_rows * body:
                break
    available = len(stream) // body
    if available == 0:
        raise TextDataError(f"'{name}' has {len(stream)} tokens, fewer than one sequence of {seq_len}; lower seq_len")
    rows = available if n_rows is None else min(n_rows, available)
    if isinstance(drawn, Windows) and n_rows is not None and available < n_rows:
        warnings.warn(f"'{name}' ended after {rows * seq_len:,} of the {n_tokens:,} tokens asked for", stacklevel=3)
    tokens = torch.frombuffer(stream, dtype=torch.long)[: rows * body].view(rows, body)
    front = [torch.full((rows, 1), bos, dtype=torch.long)] if bos is not None else []
    return torch.cat([*front, tokens], dim=1)


def _tokenised(
    portions: Iterator[list[Document]], tokenizer: Any, bos: int | None
) -> Generator[list[list[int]], None, None]:
    """Token ids of the documents, some documents at a time."""
    with contextlib.closing(portions) as coming:  # type: ignore[type-var]
        for documents in coming:
            for start in range(0, len(documents), _CHUNK):
                yield _ids(documents[start : start + _CHUNK], tokenizer, bos)


def _ids(documents: Sequence[Document], tokenizer: Any, bos: int | None) -> list[list[int]]:
    if isinstance(documents[0], str):
        found: list[list[int]] = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    else:
        found = [d for d in documents if isinstance(d, list)]
    return [without_bos(ids, bos) for ids in found]  # rows begin with it anyway


def _packed(drawn: _Drawn | Windows, seq_len: int, n_tokens: int | None, name: str) -> Tensor:
    """Rows of token ids of one length cut into sequences [n, seq_len]; what is left of each row is dropped."""
    pieces = drawn.sizes[0] // seq_len
    if not pieces:
        raise TextDataError(f"'{name}' has rows of {drawn.sizes[0]} token ids; lower seq_len {seq_len} to that")
    wanted = len(drawn.sizes) * pieces if n_tokens is None else max(1, n_tokens // seq_len)
    found: list[Tensor] = []
    for rows in drawn.portions(min(KEPT, -(-wanted // pieces) * drawn.sizes[0])):
        tokens = torch.tensor(rows, dtype=torch.long)[:, : pieces * seq_len].reshape(-1, seq_len)
        found.append(tokens)
        if sum(map(len, found)) >= wanted:
            break
    return torch.cat(found)[:wanted]


def _check_ids(ids: tuple[int, int], name: str, d_vocab: int | None) -> None:
    low, high = ids
    if low < 0 or (d_vocab is not None and high >= d_vocab):
        raise TextDataError(
            f"'{name}' holds token ids {low}–{high}, the model knows 0–{(d_vocab or 0) - 1}; it is of another tokenizer"
        )
