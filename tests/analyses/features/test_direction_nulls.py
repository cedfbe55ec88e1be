"""Nulls of logit effects, neighbours and phrases: brute force, random dictionaries, and features made to exceed them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from attlas.analyses.features.direction_nulls import direction_nulls
from attlas.analyses.features.logits import top_effect_z
from attlas.analyses.features.null import NullConfig, null_directions
from attlas.analyses.features.relations import phrase_shares
from attlas.interp import HookedModel

HOOK = "blocks.3.attn.hook_z"
CONFIG = NullConfig(100, 8)


def _rows(model: HookedModel, n: int, seed: int) -> torch.Tensor:
    """Random directions that write through the heads unevenly, as trained ones do."""
    norms = torch.rand(n, model.cfg.n_heads, generator=torch.Generator().manual_seed(seed)) ** 3 + 0.02
    return null_directions(norms, model.cfg.d_head, seed)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_dictionaries_are_as_their_null(gpt2_mini: HookedModel, seed: int) -> None:
    rows = _rows(gpt2_mini, 600, seed)
    for name, found in direction_nulls(gpt2_mini, rows, HOOK, np.ones(600, bool), CONFIG).items():
        assert (found.score > found.null).mean() <= 0.075, name
        assert (found.p <= 0.05).mean() == pytest.approx(0.05, abs=0.03), name
        assert (found.share_beyond() or 0) <= 0.01, name


@torch.no_grad()
def test_scores_by_hand_and_features_made_to_exceed_the_null(gpt2_mini: HookedModel) -> None:
    hf, rows = gpt2_mini.hf, _rows(gpt2_mini, 300, 3)
    W_O = hf.transformer.h[3].attn.c_proj.weight.double()
    readout = hf.transformer.ln_f.weight.double()[:, None] * hf.lm_head.weight.double().T
    token = int((W_O @ (readout - readout.mean(1, keepdim=True))).norm(dim=0).argmax())
    rows[:10] = (W_O @ (readout - readout.mean(1, keepdim=True)))[:, token].float() + 0.05 * rows[:10]
    rows[20:30] = rows[30:40] + 0.1 * rows[40:50]
    usable = np.arange(300) != 299
    found = direction_nulls(gpt2_mini, rows, HOOK, usable, CONFIG)
    written = rows.double() @ W_O
    effects = (written - written.mean(1, keepdim=True)) @ readout
    z = (effects.max(1).values - effects.mean(1)) / effects.std(1, correction=0)
    np.testing.assert_allclose(found["logit_z"].score[usable], z[usable], rtol=1e-4)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(-2).max(1).values
    np.testing.assert_allclose(found["neighbour_cosine"].score[usable], cosine[usable], rtol=1e-4)
    assert (found["logit_z"].q[:10] <= 0.05).all()
    assert (found["neighbour_cosine"].q[20:40] <= 0.05).all()
    ordinary = slice(50, 299)
    for null in found.values():
        assert np.isnan(null.q[299])
        assert (null.q[ordinary] <= 0.05).mean() <= 0.03  # 5 % of discoveries may be false; neighbours come in pairs
    np.testing.assert_allclose(top_effect_z(gpt2_mini, 7 * rows, HOOK), top_effect_z(gpt2_mini, rows, HOOK), rtol=1e-4)


def test_hooks_without_heads_images_and_nothing_at_all(gpt2_mini: HookedModel, vit_mini: HookedModel) -> None:
    for model, hook, width in (
        (gpt2_mini, "blocks.1.hook_attn_out", gpt2_mini.cfg.d_model),
        (vit_mini, "blocks.1.attn.hook_z", vit_mini.cfg.n_heads * vit_mini.cfg.d_head),
    ):
        rows = torch.randn(64, width)
        found = direction_nulls(model, rows, hook, np.ones(64, bool), CONFIG)
        assert set(found) == {"logit_z", "neighbour_cosine"}
        assert all(np.isfinite(null.p).all() for null in found.values())
        dead = direction_nulls(model, rows, hook, np.zeros(64, bool), CONFIG)
        assert all(null.share_beyond() is None for null in dead.values())


def test_phrase_shares_against_counters() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (6, 9), generator=draw)
    direction, sequence, position = (torch.randint(n, (80,), generator=draw) for n in (7, 6, 9))
    found = phrase_shares(tokens, direction, sequence, position, 8)
    assert np.isnan(found[7])
    for d in range(7):
        mine = [(int(s), int(p)) for e, s, p in zip(direction, sequence, position, strict=True) if int(e) == d]
        here = Counter(int(tokens[s, p]) for s, p in mine)
        after = Counter(int(tokens[s, p + 1]) for s, p in mine if p + 1 < 9)
        assert found[d] == pytest.approx(max(*here.values(), *after.values()) / len(mine))
