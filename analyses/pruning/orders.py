"""What to drop, in which order: rankings, budgets, and the controls that a ranking is compared with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

import numpy as np

from attlas.interp import HookedModel
from attlas.interp.drop import Unit, group_heads, silent_parts, units


def available(model: HookedModel, target: str) -> list[Unit]:
    """The units of a target that are not silent already.

    Raises:
        ConfigError: the target is unknown.
    """
    cfg, before = model.cfg, silent_parts(model)
    gone = {("attn", layer) for layer in before.attn} | {("mlp", layer) for layer in before.mlp}
    silent = {(layer, head) for layer in before.attn for head in range(cfg.n_heads)} | {*before.heads}
    gone |= {("head", layer * cfg.n_heads + head) for layer, head in silent}
    if target == "group":
        every = range(cfg.n_layers * cfg.n_kv_heads)
        gone |= {("group", i) for i in every if silent.issuperset(group_heads(i, cfg.n_heads, cfg.n_kv_heads))}
    return [unit for unit in units(target, cfg.n_layers, cfg.n_heads, cfg.n_kv_heads) if unit not in gone]


def ranked(scores: dict[Unit, float]) -> list[Unit]:
    """The most redundant first; ties to the later layer.

    Example:
        >>> from attlas.analyses.pruning import ranked
        >>> ranked({("attn", 0): 0.3, ("attn", 1): 0.1, ("mlp", 0): 0.2})
        [('attn', 1), ('mlp', 0), ('attn', 0)]
    """
    return sorted(scores, key=lambda unit: (scores[unit], -unit[1]))


def last_first(candidates: Sequence[Unit]) -> list[Unit]:
    """Control: the last layers first (of a layer, the MLP before the attention).

    Example:
        >>> from attlas.analyses.pruning import last_first
        >>> last_first([("attn", 0), ("attn", 1), ("attn", 2)])
        [('attn', 2), ('attn', 1), ('attn', 0)]
    """
    return sorted(candidates, key=lambda unit: (-unit[1], unit[0] != "mlp"))


def random_order(candidates: Sequence[Unit], seed: int) -> list[Unit]:
    """Control: any order.

    Example:
        >>> from attlas.analyses.pruning import random_order
        >>> sorted(random_order([("attn", 0), ("attn", 1), ("mlp", 0)], seed=1))
        [('attn', 0), ('attn', 1), ('mlp', 0)]
    """
    return [candidates[i] for i in np.random.default_rng(seed).permutation(len(candidates))]


def random_sets(
    candidates: Sequence[Unit], n: int, n_sets: int, seed: int, taken: Collection[Collection[Unit]] = ()
) -> tuple[list[list[Unit]], int]:
    """Control: distinct sets of n units, none of them equal to one of `taken`; all there are, where these are fewer.

    Returns: (the sets, each in the order of the candidates; how many there are to draw from).
    """
    there = set(candidates)
    avoided = {frozenset(units) for units in taken if len(units) == n and there.issuperset(units)}
    possible = math.comb(len(candidates), n) - len(avoided)
    generator = np.random.default_rng(seed)
    if possible <= max(1_000, 2 * n_sets):
        every = [list(units) for units in itertools.combinations(candidates, n) if frozenset(units) not in avoided]
        return [every[i] for i in generator.permutation(len(every))[:n_sets]], possible
    found: dict[frozenset[Unit], list[Unit]] = {}
    while len(found) < n_sets:
        units = [candidates[i] for i in sorted(generator.choice(len(candidates), n, replace=False))]
        if frozenset(units) not in avoided:
            found[frozenset(units)] = units
    return list(found.values()), possible
