"""What fires on a text: every activation of a plain encode, ranked as said, and sources that add up."""

from __future__ import annotations

import pytest
import torch

from attlas.analyses.features.attribution import attribute_features, attribution_hooks
from attlas.analyses.features.on_text import MOST_TOKENS, firing, sources
from attlas.errors import ConfigError, PromptError, UnsupportedModelError
from attlas.interp import HookedModel
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig

HOOKS = ("blocks.1.attn.hook_z", "blocks.3.attn.hook_z")
TEXT = "the white whale, and the white"


@pytest.fixture(scope="module")
def saes(gpt2_mini: HookedModel) -> dict[str, SAE]:
    draw = torch.Generator().manual_seed(0)
    found = {}
    for hook in HOOKS:
        found[hook] = create_sae(SAEConfig(arch="topk", hook_name=hook, d_in=192, d_sae=64, k=4, n_heads=6, d_head=32))
        found[hook].W_enc.data = torch.randn(192, 64, generator=draw)
    return found


def test_every_activation_is_found_and_ranked(gpt2_mini: HookedModel, saes: dict[str, SAE]) -> None:
    found = firing(gpt2_mini, saes, TEXT)
    _, cache = gpt2_mini.run_with_cache(gpt2_mini.to_tokens(TEXT), list(HOOKS))
    dense = {hook: sae.encode(cache[hook].flatten(-2))[0] for hook, sae in saes.items()}
    assert len(found.activation) == sum(int((d > 0).sum()) for d in dense.values())
    for hook, values in dense.items():
        for feature in values.sum(0).nonzero().flatten().tolist():
            assert found.along(hook, feature) == pytest.approx(values[:, feature].tolist(), abs=1e-5)
    rows = found.ranked()
    assert [r["activation"] for r in rows] == sorted((r["activation"] for r in rows), reverse=True)
    best = rows[0]
    values = dense[best["hook"]][1:, best["feature"]]  # the first position is left out
    assert (best["activation"], best["position"]) == (pytest.approx(float(values.max())), int(values.argmax()) + 1)
    assert best["n"] == int((values > 0).sum())
    assert {r["hook"] for r in rows} == set(HOOKS)


def test_shares_of_the_largest_rank_before_activations(gpt2_mini: HookedModel, saes: dict[str, SAE]) -> None:
    found = firing(gpt2_mini, saes, TEXT)
    weakest = found.ranked()[-1]
    known = {(weakest["hook"], weakest["feature"]): weakest["activation"]}
    first, second = found.ranked(known)[:2]
    assert (first["feature"], first["share"], second["share"]) == (weakest["feature"], pytest.approx(1.0), None)
    here = found.ranked(at=4)
    assert here
    assert {r["position"] for r in here} == {4}
    assert len(found.ranked(skip=0)) >= len(found.ranked())


def test_sources_with_biases_are_the_pre_activation(gpt2_mini: HookedModel, saes: dict[str, SAE]) -> None:
    hook = HOOKS[1]
    tokens = gpt2_mini.to_tokens(TEXT)
    _, cache = gpt2_mini.run_with_cache(tokens, attribution_hooks(gpt2_mini, hook))
    pre = saes[hook].pre_activations(cache[hook].flatten(-2))[0]
    at, feature = [3, 6], 5
    rows = sources(gpt2_mini, saes[hook], hook, TEXT, feature, at)
    where = torch.tensor(at)
    constant = attribute_features(gpt2_mini, saes[hook], hook, cache, torch.full_like(where, feature), where).constant
    assert [sum(row) for row in rows] == pytest.approx((pre[at, feature] - constant).tolist(), abs=1e-4)
    assert all(value == 0 for row, p in zip(rows, at, strict=True) for value in row[p + 1 :])


def test_what_cannot_be_read_is_said(gpt2_mini: HookedModel, vit_mini: HookedModel, saes: dict[str, SAE]) -> None:
    with pytest.raises(PromptError, match="at most 256"):  # its context, below MOST_TOKENS
        firing(gpt2_mini, saes, torch.ones(MOST_TOKENS, dtype=torch.long))
    with pytest.raises(PromptError, match="empty"):
        firing(gpt2_mini, saes, "")
    with pytest.raises(UnsupportedModelError, match="vision"):
        firing(vit_mini, saes, TEXT)
    with pytest.raises(ConfigError, match="no hook"):
        firing(gpt2_mini, {"blocks.9.attn.hook_z": saes[HOOKS[0]]}, TEXT)
