"""Class names of an image set against those of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def config_classes(id2label: Mapping[Any, Any] | None) -> tuple[str, ...]:
    """Names in the classifier's order from a config's `id2label`; empty where it holds only LABEL_0, LABEL_1 …"""
    names = {int(k): str(v).strip() for k, v in (id2label or {}).items()}
    if sorted(names) != list(range(len(names))) or all(v.upper().startswith("LABEL_") for v in names.values()):
        return ()
    return tuple(names[i] for i in range(len(names)))


def match_classes(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Place of each name in `known`, None where it has none.

    Names that are equal to the letter match first; then case, underscores and spaces aside, then one of the synonyms
    that `known` divides by commas ("tench, Tinca tinca"). A name that fits two classes has no place; nor do two names
    that would fall on one class without being equal to it.
    """
    exact = _index([[name] for name in known], str)
    loose = _index([[name] for name in known], _key)
    synonyms = _index([name.split(",") for name in known], _key)
    found: list[int | None] = []
    for name in names:
        place = exact.get(name, loose.get(_key(name), synonyms.get(_key(name))))
        found.append(None if place == -1 else place)
    taken = [place for place in found if place is not None]
    return [p if p is None or taken.count(p) == 1 or known[p] == n else None for p, n in zip(found, names, strict=True)]


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _index(spellings: Sequence[Sequence[str]], key: Any) -> dict[str, int]:
    """Spelling → place; −1 where two classes share it."""
    found: dict[str, int] = {}
    for place, words in enumerate(spellings):
        for word in {key(w) for w in words}:
            found[word] = -1 if word in found else place
    return found
