"""Sliding windows: every statistic of Mistral and of Qwen2 with mixed layers, against Hugging Face's eager maps."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from attlas.analyses.attention.anatomy import AnatomyConfig, map_anatomy
from attlas.analyses.attention.cost import CostConfig, cost_profile
from attlas.analyses.attention.head_entropy import EntropyConfig, entropy
from attlas.analyses.attention.selection import SelectionConfig, selection_layers
from attlas.analyses.attention.windows import WindowConfig, window_loss
from attlas.analyses.circuits.attention import score_terms
from attlas.analyses.circuits.frozen import FrozenPass
from attlas.analyses.circuits.qk import QKConfig, key_contrast, qk_attribution
from attlas.analyses.circuits.tracing import direct_attribution
from attlas.analyses.common.repeats import repeat_scores, repeated_tokens
from attlas.analyses.features.describe import FeaturesConfig, features
from attlas.analyses.stability.tracker import EntropyTracker
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel, load_model
from attlas.kernels import attention_stats

N, T, W, HEADS = 3, 24, 5, 4
SHAPE: dict[str, Any] = {
    "vocab_size": 17, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": HEADS,
    "num_key_value_heads": 2, "sliding_window": W, "max_position_embeddings": 64,
}  # fmt: skip


def _random(hf: Any) -> Any:
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(0, 0.25)
    return hf.double().eval()


@pytest.fixture(scope="module", params=["mistral", "qwen2"])
def model(request: pytest.FixtureRequest) -> HookedModel:
    torch.manual_seed(3)
    if request.param == "mistral":
        return load_model(_random(transformers.MistralForCausalLM(transformers.MistralConfig(**SHAPE))))
    config = transformers.Qwen2Config(**SHAPE, use_sliding_window=True, max_window_layers=1)
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    return load_model(_random(transformers.Qwen2ForCausalLM(config)))


@pytest.fixture(scope="module")
def data() -> TokenDataset:
    return TokenDataset.from_tokens(torch.randint(0, 17, (N, T), generator=torch.Generator().manual_seed(1)), "random")


def _maps(model: HookedModel, tokens: torch.Tensor) -> np.ndarray:
    """Eager attention, float64 [layer, sequence, head, query, key]."""
    eager = copy.deepcopy(model.hf)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        found = eager(tokens, output_attentions=True, use_cache=False).attentions
    return torch.stack(found).numpy()


@pytest.fixture(scope="module")
def maps(model: HookedModel, data: TokenDataset) -> np.ndarray:
    return _maps(model, data.tokens)


def _entropies(a: np.ndarray) -> np.ndarray:
    return -(a * np.log(np.maximum(a, 1e-300))).sum(-1)


def _means(a: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """[layer, head] means over sequences and queries from the second on, from the definition of each."""
    at = np.arange(T)
    distance = at[:, None] - at[None]
    n_keys = (a > 0).sum(-1)
    same = tokens[:, :, None] == tokens[:, None, :]
    after = np.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1] & (distance[:, :-1] != 0)
    ent = _entropies(a)
    found = {
        "entropy": ent,
        "normalized": ent / np.log(np.maximum(n_keys, 2)),
        "max_weight": a.max(-1),
        "sink_mass": a[..., 0],
        "diagonal": np.diagonal(a, axis1=-2, axis2=-1),
        "previous_token": np.concatenate([0 * a[..., :1, 0], np.diagonal(a, -1, -2, -1)], -1),
        "mean_distance": (a * distance).sum(-1),
        "local_mass": (a * (distance < 4)).sum(-1),
        "induction": (a * after[None, :, None]).sum(-1),
        "duplicate_token": (a * (same & (distance != 0))[None, :, None]).sum(-1),
        "top_2": np.sort(a, -1)[..., -2:].sum(-1),
    }
    # the bound's s is of the logits, which are log a but for a constant
    u = np.where(a > 0, np.log(np.maximum(a, 1e-300)), 0)
    mean = u.sum(-1, keepdims=True) / n_keys[..., None]
    s = np.sqrt((np.where(a > 0, u - mean, 0) ** 2).sum(-1))
    n = np.maximum(n_keys, 2)
    beta = np.exp(-s * np.sqrt(n / (n - 1)))
    found["lower_bound"] = np.log1p((n - 1) * beta) + s * np.sqrt(n * (n - 1)) * beta / (1 + (n - 1) * beta)
    return {name: value[..., 1:].mean((1, 3)) for name, value in found.items()}


def test_rules_are_what_eager_attention_masks(model: HookedModel, maps: np.ndarray) -> None:
    at = torch.arange(T)
    for layer, parts in enumerate(model.layers):
        assert np.array_equal(parts.rule.allowed(at, at), (maps[layer] > 0).all((0, 1)))


def test_a_window_that_llama_does_not_read() -> None:
    config = transformers.LlamaConfig(**SHAPE)
    hooked = load_model(_random(transformers.LlamaForCausalLM(config)))
    assert all(parts.rule.sliding_window is None for parts in hooked.layers)


def test_entropy(model: HookedModel, data: TokenDataset, maps: np.ndarray) -> None:
    result = entropy(model, data, EntropyConfig(window=4, batch_size=2))
    expected = _means(maps, data.tokens.numpy())
    for name in result.columns.keys() & expected.keys():
        np.testing.assert_allclose(result.columns[name], expected[name], atol=2e-6, err_msg=name)
    assert len(result.columns.keys() & expected.keys()) == 10
    quantile = np.quantile(_entropies(maps)[..., 1:].transpose(0, 2, 1, 3).reshape(3, HEADS, -1), 0.75, axis=-1)
    np.testing.assert_allclose(result.columns["q75"], quantile, atol=2e-6)


def test_map_anatomy(model: HookedModel, data: TokenDataset, maps: np.ndarray) -> None:
    result = map_anatomy(model, data, AnatomyConfig(windows=(4,), top_k=(2,), batch_size=2))
    expected = _means(maps, data.tokens.numpy())
    for name in result.columns.keys() & expected.keys():
        np.testing.assert_allclose(result.columns[name], expected[name], atol=2e-6, err_msg=name)
    np.testing.assert_allclose(result.masses["window", 4], expected["local_mass"], atol=2e-6)
    np.testing.assert_allclose(result.masses["top_k", 2], expected["top_2"], atol=2e-6)
    received = maps.sum(3).mean(1)  # [layer, head, key]
    np.testing.assert_allclose(result.column_mass, received, atol=1e-5)
    seen = (maps > 0).any((1, 2)).sum(1)  # [layer, key]
    table = result.tables()["map_columns"].to_pandas()
    np.testing.assert_allclose(table.per_query, (received / seen[:, None]).ravel(), atol=1e-5)


def test_selection_layers(model: HookedModel, data: TokenDataset, maps: np.ndarray) -> None:
    k = 3
    result = selection_layers(model, data, SelectionConfig(top_k=(k, 7), mass=0.8))
    mean = maps.mean(2)
    for selector, layer in itertools.product(range(3), repeat=2):
        values = []
        for s, q in itertools.product(range(N), range(k, T)):
            keys = np.argsort(-mean[selector, s, q])[:k]
            values.append(mean[layer, s, q, keys].sum())
        assert result.coverage[k][selector, layer] == pytest.approx(np.mean(values), abs=1e-5)
    ordered = np.cumsum(np.sort(maps, axis=-1)[..., ::-1], -1)
    needed = 1 + (ordered < 0.8 - 1e-9).sum(-1)
    assert np.abs(result.keys - needed.mean((1, 3))).max() < 0.05
    assert np.abs(result.share - (needed / (maps > 0).sum(-1)).mean((1, 3))).max() < 0.02
    if model.cfg.model_type == "mistral":  # no query sees 7 keys
        assert result.n_queries[7] == 0
        return
    # a layer of windows that selects 7 keys has only its 5 to give
    outside = [maps[0].mean(1)[s, q, max(0, q - W + 1) : q + 1].sum() for s in range(N) for q in range(7, T)]
    assert result.coverage[7][1, 0] == pytest.approx(np.mean(outside), abs=1e-5)


def test_repeated_tokens(model: HookedModel) -> None:
    tokens = repeated_tokens(model, n=2, length=3)
    scores = repeat_scores(model, tokens)
    a = _maps(model, tokens)
    np.testing.assert_allclose(scores["previous_token"], a[..., [4, 5, 6], [3, 4, 5]].mean((1, 3)), atol=1e-6)
    far = repeated_tokens(model, n=2, length=9)
    induction = repeat_scores(model, far)["induction"]  # the first copies lie outside the windows
    limited = [parts.rule.sliding_window is not None for parts in model.layers]
    tokens_seen = _maps(model, far)
    same = (far[:, :, None] == far[:, None]).numpy()
    after = np.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1] & ~np.eye(19, dtype=bool)[:, :-1]
    np.testing.assert_allclose(
        induction, (tokens_seen * after[None, :, None]).sum(-1)[..., 10:].mean((1, 3)), atol=1e-6
    )
    assert any(limited)


def test_window_loss(model: HookedModel, data: TokenDataset) -> None:
    """A limit on top of the model's own windows, put into eager attention by hand."""
    result = window_loss(model, data, WindowConfig(windows=(3, W), sinks=1))
    eager = copy.deepcopy(model.hf)
    eager.set_attn_implementation("eager")
    at = torch.arange(T)
    losses = []
    for window in (T, 3):
        for index, parts in enumerate(model.layers):
            offset = at[:, None] - at[None]
            allowed = parts.rule.allowed(at, at) & ((offset < window) | (at == 0)[None])
            bias = torch.zeros(T, T).double().masked_fill(~allowed, -torch.inf)[None, None]

            def put(_m: Any, args: Any, kwargs: Any, bias: torch.Tensor = bias) -> Any:
                return args, {**kwargs, "attention_mask": bias.expand(N, 1, T, T)}

            attn = eager.model.layers[index].self_attn
            attn._forward_pre_hooks.clear()
            attn.register_forward_pre_hook(put, with_kwargs=True)
        with torch.no_grad():
            logits = eager(data.tokens, use_cache=False).logits
        losses.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), data.tokens[:, 1:].flatten()))
    assert result.base_loss == pytest.approx(float(losses[0]), abs=1e-5)
    assert result.delta[3][-1] == pytest.approx(float(losses[1] - losses[0]), abs=1e-5)
    if model.cfg.model_type == "mistral":  # as wide as the model's own windows: nothing more is hidden
        np.testing.assert_allclose(result.delta[W], 0, atol=1e-6)


def test_feature_attribution_adds_up(model: HookedModel, data: TokenDataset, random_sae: Any) -> None:
    sae = random_sae(model, 1).double()
    result = features(model, sae, data, FeaturesConfig(n_top=3))
    examples = [e for e in result.examples if e.stratum == "top" and e.by_head is not None and e.activation > 0]
    assert examples
    constant = (sae.b_enc - sae.b_dec @ sae.W_enc).detach()
    for example in examples:
        assert example.by_head.sum() + float(constant[example.feature]) == pytest.approx(example.activation, abs=1e-5)
        assert not example.by_source[: max(0, example.position - W + 1)].any()
    # the same numbers from a prompt's frozen pass
    example = max(examples, key=lambda e: e.position)
    frozen = FrozenPass(model, data.tokens[example.sequence], {"blocks.1.attn.hook_z": sae})
    dfa = direct_attribution(frozen, 1, example.feature, example.position)
    np.testing.assert_allclose(dfa.sum(1), example.by_head, atol=1e-5)


def test_scores_and_what_sets_a_source_apart(model: HookedModel, data: TokenDataset) -> None:
    frozen = FrozenPass(model, data.tokens[0])
    layer, dest = 2, 20
    result = qk_attribution(model, data.tokens[0], QKConfig(layer, 1, dest, dest - W + 1), frozen=frozen)
    assert result.gap < 1e-6
    with pytest.raises(
        ConfigError, match=r"position 15 is outside the sliding window of layer 2 \(5 positions\).*16–20"
    ):
        qk_attribution(model, data.tokens[0], QKConfig(layer, 1, dest, 15), frozen=frozen)
    with pytest.raises(ConfigError, match="outside the sliding window"):
        key_contrast(frozen, layer, 1, dest, 3)
    scores = frozen.cache[f"blocks.{layer}.attn.hook_attn_scores"][1, dest]
    expected = float(scores[18] - scores[16:21].mean())
    assert sum(value for _, value in key_contrast(frozen, layer, 1, dest, 18)) == pytest.approx(expected, abs=1e-6)
    for side in score_terms(frozen, (layer, 1, dest, 18)).values():
        assert sum(value for _, value in side) == pytest.approx(expected, abs=1e-6)


def test_tracker(model: HookedModel, data: TokenDataset, maps: np.ndarray) -> None:
    hf = copy.deepcopy(model.hf).train()
    with EntropyTracker(hf, every=1) as tracker:
        hf(data.tokens, use_cache=False)
        tracker.step()
    found = tracker.table().to_pandas()
    ent = _entropies(maps)
    np.testing.assert_allclose(found.entropy, ent.mean((1, 3)).ravel(), atol=1e-5)
    n = (maps > 0).sum(-1)
    np.testing.assert_allclose(
        found.normalized, (ent / np.log(np.maximum(n, 2)))[..., 1:].mean((1, 3)).ravel(), atol=1e-5
    )


def test_cost_counts_the_pairs_let_through(model: HookedModel) -> None:
    rows = cost_profile(model, CostConfig(lengths=(T,), repeats=1)).table().to_pylist()
    row = next(r for r in rows if r["layer"] == 2 and r["module"] == "attn")
    pairs = sum(min(i + 1, W) for i in range(T))
    assert row["flops_mixing"] == pytest.approx(4 * row["batch_size"] * pairs * HEADS * 8)


def test_statistics_cannot_be_asked_for_without_a_rule() -> None:
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(TypeError, match="rule"):
        attention_stats(q, q)  # type: ignore[call-arg]
