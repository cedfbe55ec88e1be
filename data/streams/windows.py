"""Documents of a source too large to be gone through, drawn as it is read: no more of it is read than is used.

Files come in an order drawn from the seed, and documents are shuffled within windows of so many characters. A source that ends
in its first window gives its documents in the order that reading all of it would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from attlas.data.streams.ahead import ahead
from attlas.data.text_files import Document, File
from attlas.errors import TextDataError

WINDOW = 1 << 24  # characters shuffled together
_AN_ID = 6  # characters that a token id counts for


class Windows:
    """One pass over a source, window by window.

    Args:
        files: of the source, in order.
        read: (number, document) of the documents of these files, in the order of the numbers given.
        seed: of the order of files and documents.
        name: of the source, for messages.

    Attributes:
        ids: the least and the largest token id of the first window; None of text.
        sizes: characters, or token ids, of each document of the first window.
        check: is told the least and largest token id of every later window.
    """

    def __init__(
        self,
        files: Sequence[File],
        read: Callable[[Sequence[int]], Iterator[tuple[int, Document]]],
        seed: int,
        name: str,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._name = name
        drawn = np.random.default_rng([seed, 1]).permutation(len(files))
        self._documents = read([int(n) for n in drawn])
        self._ended = self._stopped = False
        self.check: Callable[[tuple[int, int]], None] = lambda ids: None
        numbered = self._fill()
        if self._ended:
            numbered.sort(key=lambda pair: pair[0])  # back in the order of the files
        self._first: list[Document] | None = self._shuffled(numbered)
        self.ids = _extremes(self._first)
        self.sizes = [len(document) for document in self._first]

    def portions(self, size: int) -> Iterator[list[Document]]:
        """Windows, the first one first; `size` is not asked for: windows have one of their own."""
        first, self._first = self._first, None
        if first is None:
            raise TextDataError(f"'{self._name}' is read once from its beginning; open it again")
        alike = len(set(self.sizes)) == 1 and len(self.sizes) > 1 and self.ids is not None
        yield first
        del first
        while not (self._ended or self._stopped):
            window = self._shuffled(self._fill())
            if not window:
                return
            if self.ids is not None:
                self.check(_extremes(window) or self.ids)
                if alike and {len(document) for document in window} != {self.sizes[0]}:
                    raise TextDataError(
                        f"'{self._name}' begins with rows of {self.sizes[0]} token ids, others follow; give one kind"
                    )
            yield window

    def portions_ahead(self, size: int) -> Iterator[list[Document]]:
        """`portions`, the next one read by a thread while this one is used."""
        windows = ahead(self.portions(size), name="attlas-text")
        try:
            yield from windows
        finally:
            self._stopped = True
            windows.close()

    def _fill(self) -> list[tuple[int, Document]]:
        found: list[tuple[int, Document]] = []
        held = 0
        while held < WINDOW and not self._stopped:
            pair = next(self._documents, None)
            if pair is None:
                self._ended = True
                break
            found.append(pair)
            held += len(pair[1]) * (1 if isinstance(pair[1], str) else _AN_ID)
        return found

    def _shuffled(self, numbered: list[tuple[int, Document]]) -> list[Document]:
        return [numbered[i][1] for i in self._rng.permutation(len(numbered))]


def _extremes(documents: Sequence[Document]) -> tuple[int, int] | None:
    ids = [document for document in documents if isinstance(document, list)]
    return (min(map(min, ids)), max(map(max, ids))) if ids else None
