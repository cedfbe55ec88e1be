"""Padding, windows and rows without keys are no queries."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attlas.analyses.stability.layer import AttentionLayer, Reading
from attlas.analyses.stability.tracker import EntropyTracker
from attlas.interp import HookedModel

from .tracked import entropy_of, inputs_of


def test_padding_rows_without_keys_and_single_tokens(gpt2_mini: HookedModel) -> None:
    hf = copy.deepcopy(gpt2_mini.hf).train()
    ids = inputs_of(gpt2_mini, 2)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding: the first queries of row 0 have no key
    with EntropyTracker(hf, every=1) as tracker:
        hf(input_ids=ids, attention_mask=mask)
        tracker.step()
        hf(input_ids=ids[:, :1])  # T = 1
        tracker.step()
    table = tracker.table().to_pandas()
    padded, single = table[table.step == 0], table[table.step == 1]
    with EntropyTracker(hf, every=1) as alone:
        hf(input_ids=ids[:1, 4:], position_ids=torch.arange(4, 24)[None])
        alone.step()
        hf(input_ids=ids[1:])
        alone.step()
    parts = alone.table().to_pandas()
    expected = (parts[parts.step == 0].entropy.to_numpy() * 20 + parts[parts.step == 1].entropy.to_numpy() * 24) / 44
    layer0 = slice(0, 6)  # deeper layers differ: what a padded query attends to is up to the model
    np.testing.assert_allclose(padded.entropy[layer0], expected[layer0], atol=1e-4)
    assert (padded.n_queries[layer0] == 44).all()
    assert (single.entropy == 0).all()
    assert single.normalized.isna().all()


@pytest.mark.parametrize("which", ["gpt2_mini", "tiny_llama", "windowed"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_either_side_is_no_query(
    which: str, side: str, attention: str, request: pytest.FixtureRequest
) -> None:
    """Each row's tokens alone, by their own positions, give the same sums."""
    import transformers

    if which == "windowed":
        shape = {"vocab_size": 101, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
        config = transformers.MistralConfig(**shape, num_attention_heads=2, num_key_value_heads=1, sliding_window=5)
        hf: Any = transformers.MistralForCausalLM(config)
    else:
        hf = copy.deepcopy(request.getfixturevalue(which).hf)
    hf.set_attn_implementation(attention)
    ids = torch.randint(1, 101, (3, 12), generator=torch.Generator().manual_seed(0))
    lengths = (12, 7, 4)
    mask, places = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        at = slice(0, n) if side == "right" else slice(12 - n, 12)
        mask[row, at], places[row, at] = 1, torch.arange(n)
    with EntropyTracker(hf.train(), every=1) as tracker:
        hf(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
        tracker.step()
    table = tracker.table().to_pandas()
    assert (table.n_queries == sum(lengths)).all()
    parts = []
    with EntropyTracker(hf, every=1) as alone:
        for row in range(3):
            hf(input_ids=ids[row : row + 1, mask[row].bool()], use_cache=False)
            alone.step()
    rows = alone.table().to_pandas()
    for name, weights in (("entropy", lengths), ("max_weight", lengths), ("normalized", [n - 1 for n in lengths])):
        parts = [rows[rows.step == i][name].to_numpy() for i in range(3)]
        np.testing.assert_allclose(table[name], np.average(parts, axis=0, weights=weights), atol=1e-4, err_msg=name)
    bounds = [rows[rows.step == i].weight_bound.to_numpy() for i in range(3)]
    np.testing.assert_allclose(table.weight_bound, np.average(bounds, axis=0, weights=lengths), rtol=1e-3, atol=1e-5)


def test_padding_of_custom_layers() -> None:
    q = torch.randn(2, 2, 5, 4)
    keys = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    keys[1, ..., 3:] = False
    strictly = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril(-1)
    readings = {
        7 + 1: Reading(q, q, keys),
        10: Reading(q, q, keys, queries=torch.ones(2, 5, dtype=torch.bool)),  # the queries are another sequence
        2 * 4: Reading(q, q, strictly),  # no token sees itself: the first has no key, and the last is no padding
        3: Reading(q, q, queries=torch.tensor([[True, True, False, False, False], [True] + 4 * [False]])),
    }
    for n, reading in readings.items():
        model = nn.Identity().train()
        layers = [AttentionLayer("mine", model, 2, lambda *_, reading=reading: reading)]
        with EntropyTracker(model, every=1, adapter=lambda _, layers=layers: layers) as tracker:
            model(torch.zeros(1))
            tracker.step()
        assert set(tracker.table()["n_queries"].to_pylist()) == {n}


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_sliding_windows(kind: str) -> None:
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4, "max_position_embeddings": 32,
    }  # fmt: skip
    if kind == "mistral":
        hf = transformers.MistralForCausalLM(transformers.MistralConfig(**shape, attn_implementation="eager"))
    else:
        config = transformers.Qwen2Config(**shape, use_sliding_window=True, max_window_layers=1)
        config._attn_implementation = "eager"
        hf = transformers.Qwen2ForCausalLM(config)
    ids = torch.randint(1, 40, (2, 12))
    with EntropyTracker(hf.train(), every=1) as tracker:
        maps = hf(input_ids=ids, output_attentions=True).attentions
        tracker.step()
    table = tracker.table().to_pandas()
    for layer, pattern in enumerate(maps):
        found = table[table.layer == layer].entropy
        np.testing.assert_allclose(found, entropy_of(pattern.detach().double()).mean((0, 2)), atol=1e-4)
