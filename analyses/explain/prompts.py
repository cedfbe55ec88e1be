"""What is asked, in words, and what is read from an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from attlas.analyses.explain.case import Case
from attlas.analyses.explain.config import ExplainConfig

MOST_LABEL = 200  # characters, as notes take

_LABEL_FEATURE = (
    "You study one feature of a language model. Below are excerpts of text in which it is active; the tokens on which it is "
    "active stand between << and >>. Say in one short phrase what these tokens, or what comes before them, have in common. "
    "Answer with one line that begins with LABEL: and nothing else."
)
_LABEL_HEAD = (
    "You study one attention head of a language model. In each excerpt below it attends from the token between << and >> back "
    "to the token between [[ and ]]. Say in one short phrase which tokens it attends from, and to which. "
    "Answer with one line that begins with LABEL: and nothing else."
)
_TESTS = {
    ("detection", False): "Answer 1 for an excerpt in which some token fits this description, and 0 for the others.",
    ("fuzzing", False): (
        "In each excerpt some tokens stand between << and >>. Answer 1 where these are the tokens that fit the description, "
        "and 0 where they are other tokens."
    ),
    ("detection", True): (
        "In each excerpt one token stands between << and >>. Answer 1 where the head attends from this token as described, and "
        "0 for the others."
    ),
    ("fuzzing", True): (
        "In each excerpt the head may attend from the token between << and >> back to the token between [[ and ]]. Answer 1 "
        "where this pair fits the description, and 0 for the others."
    ),
}
_LISTED = re.compile(r"\[\s*[01](?:\s*,\s*[01])*\s*,?\s*\]")
_BARE = re.compile(r"\s*[01](?:\s*,?\s*[01])*\s*\.?\s*")


@dataclass(frozen=True)
class Prompt:
    """One request.

    Attributes:
        system: what is to be done.
        user: what it is to be done with.
        n_tokens: most tokens of the answer.
    """

    system: str
    user: str
    n_tokens: int


def label_prompt(case: Case, config: ExplainConfig) -> Prompt:
    """Ask what the excerpts shown have in common."""
    task = _LABEL_HEAD if case.is_head else _LABEL_FEATURE
    return Prompt(task, _numbered(case.shown), config.label_tokens)


def judge_prompt(case: Case, test: str, label: str, excerpts: Sequence[str], config: ExplainConfig) -> Prompt:
    """Ask which held-out excerpts a label fits."""
    what = "An attention head" if case.is_head else "A feature"
    form = ", ".join("01"[i % 2] for i in range(len(excerpts)))
    task = (
        f"{what} of a language model was described in a few words. {_TESTS[test, case.is_head]} "
        f"Answer for the {len(excerpts)} excerpts in their order with a list and nothing else, in the form [{form}]."
    )
    return Prompt(task, f"Description: {label}\n\n{_numbered(excerpts)}", config.answer_tokens)


def _numbered(texts: Sequence[str]) -> str:
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))


def read_label(answer: str) -> str:
    """The label of an answer: what follows the last "LABEL:", else its first line; "" where there is nothing.

    >>> read_label('LABEL: "names of ships".')
    'names of ships'
    """
    lines = [line.strip() for line in answer.rpartition("LABEL:")[2].splitlines()]
    line = next((line for line in lines if line), "")
    return " ".join(line.strip(" \"'`*.").split())[:MOST_LABEL].strip()


def read_marks(answer: str, n: int) -> list[bool] | None:
    """The last list of n zeros and ones of an answer, or an answer that is nothing but those; else None.

    >>> read_marks("Sure: [1, 0, 0]", 3), read_marks("0 1 1", 3), read_marks("[1, 0]", 3)
    ([True, False, False], [False, True, True], None)
    """
    found = [re.findall("[01]", part) for part in _LISTED.findall(answer)]
    if not found and _BARE.fullmatch(answer):
        found = [re.findall("[01]", answer)]
    fitting = [marks for marks in found if len(marks) == n]
    return [mark == "1" for mark in fitting[-1]] if fitting else None
