"""What the Features page narrows its table by, and the SQL of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attlas.analyses.common.words import words_of
from attlas.errors import ConfigError

WHERE = ("any", "fires", "promotes", "examples")
MOST_WORDS = 8
_RANGE = re.compile(r"([a-z_]+)\s*(<=|>=|<|>|=)\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)")
Test = tuple[str, list[Any]]  # SQL, and the values it binds


@dataclass(frozen=True)
class FeatureFilter:
    """Criteria; None leaves one out.

    Attributes:
        text: substring of the top or promoted tokens, case ignored; "#12" means feature 12.
        where: what text is looked for in: "any" (tokens it fires on or promotes, and notes), "fires", "promotes", or
            "examples" (all of its words in the feature's examples).
        head: top head.
        family: family label.
        min_density, max_density: share of tokens the feature is active on.
        ranges: column, comparison, number.
        labelled: features that pass `text` besides, since a person's note on them holds it.
        among: only these features.
    """

    text: str | None = None
    where: str = "any"
    head: int | None = None
    family: str | None = None
    min_density: float | None = None
    max_density: float | None = None
    ranges: tuple[tuple[str, str, float], ...] = ()
    labelled: tuple[int, ...] = ()
    among: tuple[int, ...] | None = None


def parse_ranges(text: str) -> tuple[tuple[str, str, float], ...]:
    """ "max_act > 3, induction_q < 0.05" → (("max_act", ">", 3.0), ("induction_q", "<", 0.05)).

    Raises:
        ConfigError: a part is no comparison of a column with a number.
    """
    found = []
    for part in filter(None, (piece.strip() for piece in re.split(r",| and ", text))):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ConfigError(f"'{part[:60]}' is no range; write a column and a number, such as max_act > 3")
        found.append((match[1], match[2], float(match[3])))
    return tuple(found)


def tests(chosen: FeatureFilter, columns: Sequence[str], words: str | None) -> list[Test]:
    """Conditions on a features table with a column `_search` (top and promoted tokens in small letters).

    Args:
        columns: of the table; criteria on others are left out, ranges on others refused.
        words: path of the table example_words, if the run has one.

    Raises:
        ConfigError: a range names no number of the table, or examples are searched without an index.
    """
    plain: list[tuple[str, str, Any]] = [
        ("top_head", "top_head = ?", chosen.head),
        ("family", "family = ?", chosen.family),
        ("density", "density >= ?", chosen.min_density),
        ("density", "density <= ?", chosen.max_density),
        ("feature", "feature IN (SELECT unnest(?::BIGINT[]))", None if chosen.among is None else list(chosen.among)),
    ]
    found: list[Test] = [(sql, [value]) for column, sql, value in plain if value is not None and column in columns]
    for column, comparison, number in chosen.ranges:
        if column not in columns:
            raise ConfigError(f"these features have no '{column}'; there are {', '.join(columns)}")
        found.append((f'"{column}" {comparison} ?', [number]))
    return found + (_text(chosen, columns, words) if chosen.text and chosen.text.strip() else [])


def _text(chosen: FeatureFilter, columns: Sequence[str], words: str | None) -> list[Test]:
    text = (chosen.text or "").strip()
    number = re.fullmatch(r"#(\d{1,9})", text)
    if number:
        return [("feature = ?", [int(number[1])])]
    if chosen.where == "examples":
        if words is None:
            raise ConfigError("this run has no index of its examples; run attlas features again")
        one = "feature IN (SELECT feature FROM read_parquet(?) WHERE word = ?)"
        return [(one, [words, word]) for word in words_of(text)[:MOST_WORDS]]
    column = {"fires": "top_tokens", "promotes": "promoted"}.get(chosen.where)
    if column:
        return [(f'contains(lower("{column}"), ?)', [text.lower()])] if column in columns else [("false", [])]
    ids = ", ".join(str(int(feature)) for feature in chosen.labelled)
    also = f" OR feature IN ({ids})" if ids else ""
    return [(f"(contains(_search, ?){also})", [text.lower()])]
