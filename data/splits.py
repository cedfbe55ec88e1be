"""The one order that samples and splits of a data set are cut from: drawn by a seed, every class spread evenly."""

from __future__ import annotations

import numpy as np


def stratified_order(n: int, labels: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """A permutation int64 [n] of which every contiguous piece holds the classes in about their shares.

    Members of a class are shuffled and set at equal distances from a random start (systematic sampling), so that a
    piece holds its share of each class to within two. Without labels it is a plain random permutation.

    Args:
        n: how many things.
        labels: int [n], or None.
        seed: of the shuffle.
    """
    rng = np.random.default_rng(seed)
    order: np.ndarray = rng.permutation(n)
    if labels is None:
        return order
    place = np.empty(n)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(place, kind="stable")
