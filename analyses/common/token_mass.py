"""Which tokens carry the weight: attention, or anything else given by position, summed by the text of the token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Weighted = tuple[Sequence[str], np.ndarray, np.ndarray]
"""Tokens of one sequence, positions [n], and the weight at each of these positions [n]."""


def token_mass(sequences: Iterable[Weighted], n: int) -> list[tuple[str, float]]:
    """The n texts of most weight, each with its sum over all sequences; equal sums in the order of the text.

    Positions behind the tokens that are given are left out.

    Example:
        >>> import numpy as np
        >>> from attlas.analyses.common.token_mass import token_mass
        >>> token_mass([(["a", "b", "a"], np.array([0, 2, 1]), np.array([0.5, 0.5, 0.25]))], 2)
        [('a', 1.0), ('b', 0.25)]
    """
    found: dict[str, float] = {}
    for tokens, positions, weights in sequences:
        mass = np.bincount(positions, weights=weights, minlength=len(tokens))[: len(tokens)]
        for position in np.flatnonzero(mass).tolist():
            found[tokens[position]] = found.get(tokens[position], 0.0) + float(mass[position])
    return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:n]
