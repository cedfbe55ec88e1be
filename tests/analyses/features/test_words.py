"""The index of words against a plain look through the texts."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from attlas.analyses.common.words import word_index, words_of

PIECES = st.lists(
    st.sampled_from([" the", "cap", "tain", "'s", " Ship", ", ", "\n", "é", " 18", "51", "_", "’s"]), max_size=8
)


@given(st.lists(st.tuples(st.integers(0, 4), PIECES), max_size=10))
def test_the_index_is_a_look_through_the_texts(texts: list[tuple[int, list[str]]]) -> None:
    found = word_index(texts)
    rows = list(zip(found["word"], map(int, found["feature"]), map(int, found["n_showing"]), strict=True))
    assert rows == sorted(rows)
    whole = [(owner, "".join(pieces).lower().replace("’", "'")) for owner, pieces in texts]
    every = {
        word for _, text in whole for word in re.split(r"(?:[^\w']|_)+|(?<!\w)'+|'+(?!\w)", text) if word.strip("'_")
    }
    assert {word for word, _, _ in rows} == {word.strip("'") for word in every}
    for word, owner, n in rows:
        assert n == sum(o == owner and word in words_of(text) for o, text in whole) > 0


def test_words() -> None:
    assert words_of("Don’t—stop! x_1 3.5 'quoted'") == ["don't", "stop", "x", "1", "3", "5", "quoted"]
    assert words_of("a" * 50) == ["a" * 40]
    assert words_of(" \n") == []
