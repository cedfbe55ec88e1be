"""Words and templates of the tasks; each task keeps those words that are one token in the tokenizer at hand."""

from __future__ import annotations

from typing import Any

from attlas.errors import TaskError
from attlas.interp.tokens import token_texts


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Mary John Tom James Anna David Sarah Michael Robert Kate Paul Peter Alice Mark Laura Emily Jack "
    "Henry George William Charles Thomas Joseph Richard Daniel Matthew Andrew Susan Linda Karen Lisa Amy "
    "Rachel Emma Jane Julia Martin Simon Adam Alex Ben Sam Max Luke Eric Kevin Brian Steve Scott Ryan"
)
PLACES = ("store", "park", "school", "office", "house", "station", "hospital", "garden", "restaurant", "church")
THINGS = ("book", "drink", "ring", "letter", "ball", "bag", "key", "gift", "card", "map")
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "orange", "purple", "pink")
OBJECTS = ("pen", "cup", "book", "ball", "hat", "key", "bag", "box", "ring", "card", "bottle", "plate")
NOUNS = ("war", "work", "search", "trade", "journey", "project", "rule", "study", "peace", "trial")
ARGUMENTS = _words(
    "file size name path text value key index list count time type node user data code item line group state"
)
DOC_WORDS = _words("new main small large next first last open free full local common")

# {A}, {B}: the two names in the order they appear; {S}: the one that appears again. The answer is the other one.
IOI_TEMPLATES = (
    "When{A} and{B} went to the{place},{S} gave a{thing} to",
    "When{A} and{B} got a{thing} at the{place},{S} decided to give it to",
    "After{A} and{B} went to the{place},{S} gave a{thing} to",
    "While{A} and{B} were working at the{place},{S} gave a{thing} to",
    "Then,{A} and{B} went to the{place}.{S} gave a{thing} to",
    "Then,{A} and{B} had a long argument, and afterwards{S} said to",
)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text as it stands, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def single_tokens(tokenizer: Any, words: tuple[str, ...]) -> list[str]:
    """Those words that are one token after a space, with the space."""
    return [f" {word}" for word in words if len(token_ids(tokenizer, f" {word}")) == 1]


def capitalised_words(tokenizer: Any, n: int) -> list[str]:
    """Up to n capitalised one-token words of the vocabulary, in the order of their ids (frequent ones come first)."""
    found = []
    for text in token_texts(tokenizer, range(len(tokenizer))):
        word = text.removeprefix(" ")
        if text.startswith(" ") and len(word) >= 4 and word.isalpha() and word.istitle() and word.isascii():
            found.append(text)
            if len(found) == n:
                break
    return found


def need(tokenizer: Any, words: tuple[str, ...], least: int, what: str) -> list[str]:
    """The one-token words, at least `least` of them.

    Raises:
        TaskError: there are fewer; says how many.
    """
    found = single_tokens(tokenizer, words)
    if len(found) < least:
        raise TaskError(
            f"the tokenizer has {len(found)} of {len(words)} {what} as one token and the task needs {least}; "
            "use a model with a larger vocabulary, or the induction task"
        )
    return found
