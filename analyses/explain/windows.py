"""Excerpts of a text on which features fire and on which they are silent, parted into shown and held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attlas.analyses.explain.case import Case, Excerpt, marked
from attlas.analyses.explain.config import MARK, ExplainConfig
from attlas.data.notes import feature_subject
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.saes.base import SAE

_BATCH = 8
Words = Callable[[int], list[str]]


@dataclass(frozen=True)
class Windows:
    """Excerpts of equal length, each text once.

    Attributes:
        ids: int64 [W, context].
        activations: float32 [W, context, n_features].
    """

    ids: np.ndarray
    activations: np.ndarray


@torch.no_grad()
def read_windows(
    model: HookedModel,
    sae: SAE,
    hook: str,
    data: TokenDataset,
    features: Sequence[int],
    context: int,
    track: Track = no_track,
) -> Windows:
    """Cut a text into excerpts, one behind the other (first positions left out, where attention rests), and encode it."""
    context = min(context, data.tokens.shape[1] - 1)
    wanted = torch.tensor(list(features), device=model.device)
    ids, values, start = [], [], 0
    for batch in track(data.tokens.split(_BATCH), "excerpts"):
        x = sae.flatten_heads(model.capture(batch, [hook])[hook])[:, 1:]
        found = torch.cat([sae.encode(part)[..., wanted].float().cpu() for part in x.split(1)])
        whole = (
            torch.ones(batch.shape, dtype=torch.bool) if data.mask is None else data.mask[start : start + len(batch)]
        )
        start += len(batch)
        n = x.shape[1] // context
        keep = whole[:, 1 : 1 + n * context].reshape(-1, context).all(1)
        ids.append(batch[:, 1 : 1 + n * context].reshape(-1, context).cpu()[keep].numpy())
        values.append(found[:, : n * context].reshape(-1, context, len(features))[keep].numpy())
    cut, fired = np.concatenate(ids), np.concatenate(values)
    _, first = np.unique(cut, axis=0, return_index=True)  # a text that comes twice is held out from itself
    first.sort()
    return Windows(cut[first], fired[first])


def feature_cases(
    windows: Windows, model: HookedModel, of: str, features: Sequence[int], config: ExplainConfig
) -> list[Case]:
    """One case a feature, in their order.

    Half of the excerpts it fires on are set aside before anything is chosen, so that what is held out is an even sample of
    where it fires; wrong marks are as many as the right ones would be, on tokens where it is silent.
    """
    texts: dict[int, str] = {}

    def words(row: int) -> list[str]:
        for token in set(windows.ids[row].tolist()) - texts.keys():
            texts[token] = model.to_str_tokens([token])[0] if model.tokenizer is not None else f" {token}"
        return [texts[token] for token in windows.ids[row].tolist()]

    found = []
    for column, feature in enumerate(features):
        rng = np.random.default_rng([config.seed, feature])
        acts = windows.activations[..., column]
        most = acts.max(1)
        active, silent = (rng.permutation(np.flatnonzero(where)) for where in (most > 0, most == 0))
        pool, rest = active[: len(active) // 2], active[len(active) // 2 :][: config.n_test]
        strongest = pool[np.argsort(-most[pool], kind="stable")]
        n_top = -(-config.n_shown // 2)
        others = rng.permutation(strongest[n_top:])[: config.n_shown - n_top]
        marks = {row: _marks(acts[row]) for row in active.tolist()}
        shown = [marked(words(row), marks[row]) for row in [*strongest[:n_top].tolist(), *others.tolist()]]
        found.append(
            Case(
                feature_subject(of, feature),
                tuple(shown),
                _detection(rest, silent, words, rng),
                _fuzzing(rest, acts, marks, words, rng),
                feature=feature,
            )
        )
    return found


def _marks(activations: np.ndarray) -> set[int]:
    return set(np.flatnonzero(activations >= max(MARK * float(activations.max()), 1e-30)).tolist())


def _detection(active: np.ndarray, silent: np.ndarray, words: Words, rng: np.random.Generator) -> tuple[Excerpt, ...]:
    n = min(-(-len(active) // 2), len(silent))
    right = [Excerpt(marked(words(row), ()), True) for row in active[:n].tolist()]
    wrong = [Excerpt(marked(words(row), ()), False) for row in silent[:n].tolist()]
    return _mixed([*right, *wrong], rng)


def _fuzzing(
    rows: np.ndarray,
    acts: np.ndarray,
    marks: dict[int, set[int]],
    words: Words,
    rng: np.random.Generator,
) -> tuple[Excerpt, ...]:
    places = {row: np.flatnonzero(acts[row] == 0) for row in rows.tolist()}
    can = [row for row in rows.tolist() if len(places[row]) >= len(marks[row])]
    wrong_rows = can[: len(rows) // 2]
    right_rows = [row for row in rows.tolist() if row not in wrong_rows][: len(wrong_rows)]
    wrong_rows = wrong_rows[: len(right_rows)]
    right = [Excerpt(marked(words(row), marks[row]), True) for row in right_rows]
    wrong = [
        Excerpt(
            marked(words(row), set(rng.choice(places[row], len(marks[row]), replace=False).tolist())),
            False,
        )
        for row in wrong_rows
    ]
    return _mixed([*right, *wrong], rng)


def _mixed(excerpts: list[Excerpt], rng: np.random.Generator) -> tuple[Excerpt, ...]:
    return tuple(excerpts[i] for i in rng.permutation(len(excerpts)))
