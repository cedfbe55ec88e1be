"""An index from words to what holds them, so that a search reads a few rows of a table however long the texts are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MOST = 40  # characters of a word that are kept


def words_of(text: str) -> list[str]:
    """Words of a text in small letters: runs of letters and digits, with apostrophes within.

    Example:
        >>> from attlas.analyses.common.words import words_of
        >>> words_of("The captain's ship, 1851—")
        ['the', "captain's", 'ship', '1851']
    """
    return [word[:MOST].replace("’", "'") for word in _WORD.findall(text.lower())]


def word_index(texts: Iterable[tuple[int, Sequence[str]]]) -> dict[str, list[Any]]:
    """Word → owners: rows (word, owner, number of its texts with the word), in order of word, then owner.

    Args:
        texts: (owner, pieces of a text); an owner may have several.

    Returns: columns word, feature (the owner) and n_showing.
    """
    counts: Counter[tuple[str, int]] = Counter()
    for owner, pieces in texts:
        counts.update((word, owner) for word in set(words_of("".join(pieces))))
    found = sorted(counts)
    return {
        "word": [word for word, _ in found],
        "feature": [owner for _, owner in found],
        "n_showing": [counts[key] for key in found],
    }
