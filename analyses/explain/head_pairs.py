"""Excerpts for heads, from the sequences that a run of `heads` keeps: what each attends from, and to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from attlas.analyses.common.columns import Head
from attlas.analyses.explain.case import Case, Excerpt, marked
from attlas.analyses.explain.config import ExplainConfig
from attlas.data.notes import head_subject
from attlas.errors import ConfigError

_BEFORE, _AFTER = 12, 4  # tokens shown around a pair
_QUERIES = 6  # of one sequence
_FIRST = 8  # earlier queries have few keys to choose from
_WEAK = 0.5  # a query counts as weak up to this share of the weakest of its sequence's strong ones


@dataclass(frozen=True)
class _Sequence:
    """A sequence of a head: the queries that attend most off the first position with their key, the least, every kept pair."""

    tokens: list[str]
    strongest: dict[int, int]
    weakest: list[int]
    pairs: set[tuple[int, int]]


def head_cases(
    sequences: pa.Table, texts: pa.Table, model: str, heads: Sequence[Head], config: ExplainConfig
) -> list[Case]:
    """One case a head, in their order; sequences that are shown are not held out.

    Args:
        sequences, texts: tables head_sequences and head_texts of a run of `heads` on text.
        model: its name.

    Raises:
        ConfigError: a run on images, or a head that the tables lack.
    """
    tokens = dict(zip(texts["sequence"].to_pylist(), texts["tokens"].to_pylist(), strict=True))
    if not any(tokens.values()):
        raise ConfigError("this run of heads is on images, which have no words; explain heads of a text model")
    return [_case(_of(sequences, tokens, head), model, head, config) for head in heads]


def _of(sequences: pa.Table, tokens: dict[int, list[str]], head: Head) -> list[_Sequence]:
    mine = sequences.filter(pc.and_(pc.equal(sequences["layer"], head[0]), pc.equal(sequences["head"], head[1])))
    if not mine.num_rows:
        raise ConfigError(f"the run of heads keeps no sequence of head {head[0]}.{head[1]}; give another head")
    rows = {row["sequence"]: row for row in mine.filter(pc.equal(mine["by"], "weight")).to_pylist()}
    found = []
    for sequence, row in rows.items():
        best: dict[int, tuple[float, int]] = {}
        for query, key, weight in zip(row["query"], row["key"], row["weight"], strict=True):
            if key > 0 and query >= _FIRST:
                best[query] = max(best.get(query, (0.0, -1)), (weight, key))
        strongest = sorted(best, key=lambda q: -best[q][0])[:_QUERIES]
        pairs = set(zip(row["query"], row["key"], strict=True))
        if strongest:
            bar = _WEAK * best[strongest[-1]][0]
            weak = [q for q in range(_FIRST, len(tokens[sequence])) if best.get(q, (0.0, 0))[0] <= bar]
            found.append(_Sequence(tokens[sequence], {q: best[q][1] for q in strongest}, weak, pairs))
    return found


def _case(found: list[_Sequence], model: str, head: Head, config: ExplainConfig) -> Case:
    rng = np.random.default_rng([config.seed, *head])
    order = [found[i] for i in rng.permutation(len(found))]
    half = len(order) // 2
    shown = [_text(s, q, k) for s in order[:half] for q, k in list(s.strongest.items())[:2]][: config.n_shown]
    right = [(s, q, k) for s in order[half:] for q, k in s.strongest.items()]
    right = [right[i] for i in rng.permutation(len(right))]
    half_n = config.n_test // 2
    weak = [(s, q) for s in order[half:] for q in rng.permutation(s.weakest)[: len(s.strongest)].tolist()]
    weak = [weak[i] for i in rng.permutation(len(weak))]
    n = min(half_n, len(right), len(weak))
    detection = [Excerpt(_text(s, q), True) for s, q, _ in right[:n]]
    detection += [Excerpt(_text(s, q), False) for s, q in weak[:n]]
    pairs = right[: 2 * half_n]
    n = len(pairs) // 2
    fuzzing = [Excerpt(_text(s, q, k), True) for s, q, k in pairs[:n]]
    fuzzing += [Excerpt(_text(s, q, other), False) for s, q, _ in pairs[n : 2 * n] for other in _other(s, q, rng)]
    n_wrong = sum(not e.truth for e in fuzzing)
    fuzzing = [*fuzzing[:n][:n_wrong], *[e for e in fuzzing if not e.truth]]
    layer, index = head
    order_d, order_f = rng.permutation(len(detection)), rng.permutation(len(fuzzing))
    return Case(
        head_subject(model, layer, index),
        tuple(shown),
        tuple(detection[i] for i in order_d),
        tuple(fuzzing[i] for i in order_f),
        layer=layer,
        head=index,
    )


def _other(s: _Sequence, query: int, rng: np.random.Generator) -> list[int]:
    """An earlier key that this query gives no kept weight; none where there is no such."""
    free = [k for k in range(1, query) if (query, k) not in s.pairs]
    return [int(rng.choice(free))] if free else []


def _text(s: _Sequence, query: int, key: int | None = None) -> str:
    """The pair with what stands around it; what lies far between is left out."""
    last = min(len(s.tokens), query + _AFTER + 1)
    if key is None:
        first = max(1, query - 2 * _BEFORE)
        return marked(s.tokens[first:last], {query - first})
    first = max(1, query - _BEFORE)
    if key >= first:
        return _both(s.tokens, max(1, min(first, key - _AFTER)), last, query, key)
    near = marked(s.tokens[first:last], {query - first})
    begin, end = max(1, key - _AFTER), min(first, key + _AFTER + 1)
    return f"{marked(s.tokens[begin:end], {key - begin}, '[[', ']]')} … {near}"


def _both(tokens: list[str], first: int, last: int, query: int, key: int) -> str:
    shown = list(tokens[first:last])
    shown[key - first] = f"[[{shown[key - first]}]]"
    return marked(shown, {query - first})
