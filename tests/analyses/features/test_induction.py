"""Layer 3 of gpt2-mini: what is left of its induction features beside directions that read the same heads.

Attribution at induction sources rises when the induction heads are born, but as much for a random direction: the score
alone says when the *heads* look there. What a feature adds is its excess.
"""

from __future__ import annotations

import numpy as np
import pytest

import attlas
from attlas.analyses.features.describe import FeaturesConfig, FeaturesResult, features
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import load_tokens
from attlas.interp import HookedModel, load_model
from attlas.saes import TrainConfig

HOOK = "blocks.3.attn.hook_z"
EARLY = EMBEDDED_DIR / "gpt2-mini" / "checkpoints" / "step-00250"


def _interpret(model: HookedModel, name: str, tokenizer: object) -> FeaturesResult:
    config = TrainConfig(model=name, hooks=(HOOK,), k=16, d_sae=512, n_tokens=100_000)
    trained = attlas.train_sae(config)
    text = load_tokens("embedded:val", tokenizer, seq_len=256, n_tokens=16_384, seed=0)
    return features(model, trained.saes[HOOK], text, FeaturesConfig(n_top=8, null_draws=50, null_tokens=8_192))


@pytest.fixture(scope="module")
def late(gpt2_mini: HookedModel) -> FeaturesResult:
    return _interpret(gpt2_mini, "gpt2-mini", gpt2_mini.tokenizer)


def _scores(found: FeaturesResult, of: str) -> np.ndarray:
    return np.array([getattr(s, of)["induction"] for s in found.families.values()])


def test_the_score_rises_with_the_heads_and_its_null_with_it(gpt2_mini: HookedModel, late: FeaturesResult) -> None:
    early = _interpret(load_model(EARLY, device="cpu"), str(EARLY), gpt2_mini.tokenizer)
    assert (~np.isnan(_scores(early, "score"))).sum() > 100  # enough were looked at; most fire on too few sequences
    assert np.nanmean(_scores(late, "score")) > 2 * np.nanmean(_scores(early, "score"))
    assert np.nanmean(_scores(late, "null")) > 2 * np.nanmean(_scores(early, "null"))
    excess = {name: _scores(r, "score") - _scores(r, "null") for name, r in (("late", late), ("early", early))}
    assert abs(np.nanmean(excess["late"])) < 0.1 * np.nanmean(_scores(late, "score")) + 0.05
    assert np.nanstd(excess["late"]) > 2 * np.nanstd(excess["early"])  # features differ, on either side of the null
    assert not any(s.label == "induction" for s in early.families.values())
    labelled = [s for s in late.families.values() if s.label != "unassigned"]
    assert len(labelled) < 0.1 * len(late.families)


def _induction_features(found: FeaturesResult) -> list[int]:
    """The eighth with the largest excess, whether or not it is enough for a label."""
    scores = _scores(found, "score") - _scores(found, "null")
    best = np.argsort(-np.nan_to_num(scores, nan=-1))[: len(scores) // 8]
    return [list(found.families)[i] for i in best]


def test_attribution_points_at_the_token_after_the_earlier_occurrence(late: FeaturesResult) -> None:
    chosen, hits, chance = set(_induction_features(late)), [], []
    for e in late.examples:
        if e.feature not in chosen or e.by_source is None:
            continue
        tokens = e.sequence_tokens
        assert tokens is not None
        source = int(e.by_source[1 : e.position + 1].argmax()) + 1
        after_copy = tokens[: e.position] == tokens[e.position]
        hits.append(after_copy[source - 1])
        chance.append(after_copy.mean())  # a source drawn at random
    assert len(hits) > 300
    assert np.mean(hits) > 0.5
    assert np.mean(chance) < 0.1


def test_the_induction_heads_carry_them(late: FeaturesResult) -> None:
    """Heads 3.0 and 3.4 have the induction scores of the layer (0.54 and 0.51); their features' attribution is theirs."""
    chosen = set(_induction_features(late))
    by_head = {True: np.zeros(6), False: np.zeros(6)}
    for e in late.examples:
        if e.by_head is not None:
            by_head[e.feature in chosen] += np.clip(e.by_head, 0, None)
    share = {kind: (v[0] + v[4]) / v.sum() for kind, v in by_head.items()}
    assert share[True] > 0.5
    assert share[True] > share[False] + 0.1
