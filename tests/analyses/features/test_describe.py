"""Features against a dense pass written out in float64, and properties that hold for any of them."""

from __future__ import annotations

import collections
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attlas.analyses.features.attribution import head_shares, head_spread
from attlas.analyses.features.describe import FeaturesConfig, FeaturesResult, features
from attlas.analyses.features.relations import Coactivation, neighbours
from attlas.analyses.features.stream import FeatureStream
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.saes import SAE, SAEConfig
from attlas.saes.architectures import create_sae

HOOK = "blocks.3.attn.hook_z"
CONFIG = FeaturesConfig(
    batch_size=3, n_top=4, n_sample=16, per_band=2, context=12, n_logits=5, n_related=5, null_draws=5
)


def random_sae(model: HookedModel, hook: str, inputs: torch.Tensor, d_sae: int = 40, k: int = 6) -> SAE:
    """Random directions about the mean activation, so that every feature has its turn."""
    torch.manual_seed(1)
    d_in = model.cfg.n_heads * model.cfg.d_head
    sae = create_sae(SAEConfig(d_in=d_in, d_sae=d_sae, k=k, hook_name=hook, model_name=model.name))
    with torch.no_grad():
        x = model.capture(inputs, hook)[hook].flatten(-2)[:, 1:].flatten(0, 1)
        sae.b_dec.copy_(x.mean(0))
        sae.W_dec.normal_(0, sae.cfg.d_in**-0.5)
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.normal_(0, 0.02)
    return sae


@pytest.fixture(scope="module")
def sae(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> SAE:
    return random_sae(gpt2_mini, HOOK, val_tokens.tokens)


@pytest.fixture(scope="module")
def found(gpt2_mini: HookedModel, sae: SAE, val_tokens: TokenDataset) -> FeaturesResult:
    return features(gpt2_mini, sae, val_tokens, CONFIG)


@pytest.fixture(scope="module")
def dense(gpt2_mini: HookedModel, sae: SAE, val_tokens: TokenDataset) -> np.ndarray:
    """Activations [sequence, position, F] by the plain formula, position 0 (BOS) set to 0."""
    with torch.no_grad():
        x = gpt2_mini.capture(val_tokens.tokens, HOOK)[HOOK].flatten(-2).double()
    pre = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    top = pre.topk(sae.cfg.k, dim=-1)
    f = torch.zeros_like(pre).scatter(-1, top.indices, top.values.clamp_min(0))
    f[:, 0] = 0
    return f.detach().numpy()


def test_counts_and_means_are_those_of_a_dense_pass(found: FeaturesResult, dense: np.ndarray) -> None:
    table = found.table().to_pandas()
    flat = dense.reshape(-1, dense.shape[-1])
    n = dense.shape[0] * (dense.shape[1] - 1)
    assert found.n_tokens == n
    count = (flat > 0).sum(0)
    assert table.n_active.tolist() == count.tolist()
    np.testing.assert_allclose(table.density, count / n)
    np.testing.assert_allclose(table.mean_act, flat.sum(0) / np.maximum(count, 1), rtol=1e-5)
    np.testing.assert_allclose(table.max_act, flat.max(0), rtol=1e-5)


def test_numbers_stand_beside_their_nulls(found: FeaturesResult) -> None:
    """Random directions: next to none is beyond; dead features have no null."""
    table = found.table().to_pandas()
    alive = table.n_active > 0
    for name in ("logit_z", "neighbour_cosine"):
        assert table[name].notna().equals(alive)
        assert table[f"{name}_q"].notna().equals(alive)
    assert table.phrase.dropna().between(0, 1).all()
    assert table.phrase.notna().any()
    shares = found.summary()["beyond_null"]
    assert set(shares) == {"logit_z", "neighbour_cosine", "phrase"}
    for name, share in shares.items():
        assert share == pytest.approx((table[f"{name}_q"].dropna() <= 0.05).mean())
        assert share <= 0.05


def test_histogram_adds_up_and_brackets(found: FeaturesResult, dense: np.ndarray) -> None:
    bins = found.tables()["histogram"].to_pandas()
    flat = dense.reshape(-1, dense.shape[-1])
    for feature, part in bins.groupby("feature"):
        values = flat[:, feature][flat[:, feature] > 0]
        assert part["count"].sum() == len(values)
        for _, row in part.iterrows():
            inside = ((values > row.bin_left * (1 - 1e-6)) & (values <= row.bin_right * (1 + 1e-6))).sum()
            assert inside >= row["count"] > 0


def test_top_examples_are_each_sequences_best_in_order(found: FeaturesResult, dense: np.ndarray) -> None:
    examples = found.tables()["examples"].to_pandas()
    for feature, part in examples[examples.stratum == "top"].groupby("feature"):
        best = dense[:, :, feature].max(1)
        expected = np.sort(best[best > 0])[::-1][: CONFIG.n_top]
        np.testing.assert_allclose(part.activation, expected, rtol=1e-5)
        for _, row in part.iterrows():
            assert dense[row.sequence, row.position, feature] == pytest.approx(row.activation, rel=1e-5)


def test_lower_strata_lie_below_one_another(found: FeaturesResult, dense: np.ndarray) -> None:
    examples = found.tables()["examples"].to_pandas()
    assert set(examples.stratum) == {"top", "q75", "q50", "q25"}
    for _, part in examples.groupby("feature"):
        bands = [part[part.stratum == name].activation for name in ("q75", "q50", "q25")]
        for upper, lower in itertools.pairwise(bands):
            assert not len(upper) or not len(lower) or upper.min() >= lower.max()


def test_context_shows_the_tokens_and_their_activations(
    found: FeaturesResult, dense: np.ndarray, gpt2_mini: HookedModel, val_tokens: TokenDataset
) -> None:
    for row in found.tables()["examples"].slice(0, 30).to_pylist():
        shown = slice(row["context_start"], row["context_start"] + len(row["tokens"]))
        assert row["tokens"] == gpt2_mini.to_str_tokens(val_tokens.tokens[row["sequence"], shown])
        there = np.array(row["activations"])
        expected = dense[row["sequence"], shown, row["feature"]]
        if row["context_start"] == 0:
            there = there[1:]  # BOS is shown with what it has, and counted nowhere
            expected = expected[1:]
        np.testing.assert_allclose(there, expected, atol=1e-5)


@pytest.mark.parametrize("family_name", ["gpt2_mini", "tiny_llama", "vit_mini"])
def test_attribution_sums_to_the_pre_activation(
    family_name: str, request: pytest.FixtureRequest, val_tokens: TokenDataset, glyphs: ImageDataset
) -> None:
    """Over heads, and over sources: Σ + b_enc − b_dec·W_enc is the pre-activation (grouped-query attention, ViT too)."""
    model: HookedModel = request.getfixturevalue(family_name)
    hook = "blocks.1.attn.hook_z"
    data: Any = glyphs.take(6)
    if model.cfg.family != "vit":
        torch.manual_seed(0)
        tokens = torch.randint(1, min(90, model.cfg.d_vocab), (5, 40))
        data = TokenDataset(tokens, "random", "0" * 16)
    inputs = data.tokens if isinstance(data, TokenDataset) else data.pixels
    sae = random_sae(model, hook, inputs)
    result = features(model, sae, data, FeaturesConfig(batch_size=2, n_top=2, n_sample=8, context=64))
    with torch.no_grad():
        x = model.capture(inputs, hook)[hook].flatten(-2).double()
    pre = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    bias = (sae.b_enc - sae.b_dec @ sae.W_enc).detach().double().numpy()
    checked = 0
    for e in result.examples:
        if e.stratum != "top":
            continue
        assert e.by_head is not None
        assert e.by_source is not None
        assert e.by_head.shape == (model.cfg.n_heads,)
        expected = float(pre[e.sequence, e.position, e.feature])
        assert e.by_head.sum() + bias[e.feature] == pytest.approx(expected, abs=1e-4, rel=1e-4)
        assert e.by_source.sum() + bias[e.feature] == pytest.approx(expected, abs=1e-4, rel=1e-4)
        if model.cfg.causal:
            assert not e.by_source[e.position + 1 :].any()
        checked += 1
    assert checked > 20


def test_shown_and_outside_attribution_make_the_whole(found: FeaturesResult) -> None:
    for row, e in zip(found.tables()["examples"].to_pylist(), found.examples, strict=True):
        if e.by_source is not None:
            total = sum(row["dfa_sources"]) + row["dfa_outside"]
            assert total == pytest.approx(float(e.by_head.sum()), abs=1e-4)  # type: ignore[union-attr]


def test_logit_effects_by_hand(found: FeaturesResult, gpt2_mini: HookedModel, sae: SAE) -> None:
    """Through W_O, centred, times the final norm's weights, through the unembedding; all in float64."""
    hf = gpt2_mini.hf
    W_O = hf.transformer.h[3].attn.c_proj.weight.detach().double()
    direction = sae.W_dec.detach().double() @ W_O
    direction = (direction - direction.mean(-1, keepdim=True)) * hf.transformer.ln_f.weight.detach().double()
    effects = (direction @ hf.lm_head.weight.detach().double().T).numpy()
    logits = found.tables()["logits"].to_pandas()
    for (feature, sign), part in logits.groupby(["feature", "sign"]):
        ordered = np.sort(effects[feature])
        expected = ordered[::-1][:5] if sign == "promoted" else ordered[:5]
        np.testing.assert_allclose(part.sort_values("rank").effect, expected, rtol=1e-4, atol=1e-5)


def test_head_shares_sum_to_one_and_spread_counts_heads() -> None:
    one = torch.zeros(2, 12)
    one[0, 4:8] = 3.0  # head 1 of 3 alone
    one[1] = 1.0  # all alike
    shares = head_shares(one, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    torch.testing.assert_close(shares[0], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(head_spread(shares), torch.tensor([1.0, 3.0]))


def test_token_summaries(found: FeaturesResult, dense: np.ndarray, val_tokens: TokenDataset) -> None:
    table = found.tables()["feature_tokens"].to_pandas()
    tokens = val_tokens.tokens.numpy()
    for feature, part in list(table.groupby("feature"))[:10]:
        sums: collections.Counter[int] = collections.Counter()
        for s, t in zip(*np.nonzero(dense[:, :, feature]), strict=True):
            sums[int(tokens[s, t])] += dense[s, t, feature]
        expected = sorted(sums.values(), reverse=True)[: len(part)]
        np.testing.assert_allclose(part.share, np.array(expected) / sum(sums.values()), rtol=1e-4)


# -- relations ---------------------------------------------------------------------------------------------------------


def test_neighbours_against_all_cosines() -> None:
    torch.manual_seed(0)
    W = torch.randn(33, 12)
    cosines, indices = neighbours(W, n=4, chunk=7)
    full = torch.nn.functional.cosine_similarity(W[:, None].double(), W[None].double(), dim=-1)
    full.fill_diagonal_(-2)
    expected = full.topk(4, dim=1)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(cosines.double(), expected.values, atol=1e-6, rtol=1e-5)


def test_coactivation_against_correlation(dense: np.ndarray) -> None:
    """φ is Pearson's correlation of the two indicators."""
    active = torch.tensor(dense[:, 1:].reshape(1, -1, dense.shape[-1]))
    n_tokens = 600
    counted = Coactivation(dense.shape[-1], n_tokens)
    for part in active.split(250, dim=1):
        values, indices = part.topk(6, dim=-1)
        counted.add(values, indices)
    rows = list(counted.strongest(n=4))
    on = (active[0, :n_tokens].numpy() > 0).astype(float)
    assert counted.seen == n_tokens
    assert len(rows) > 40
    with np.errstate(invalid="ignore"):
        correlations = np.corrcoef(on.T)
    for row in rows:
        a, b = row["feature"], row["other"]
        assert row["phi"] == pytest.approx(correlations[a, b], abs=1e-9)
        assert row["n_both"] == (on[:, a] * on[:, b]).sum() >= 3
        assert row["jaccard"] == pytest.approx(row["n_both"] / np.maximum(on[:, a], on[:, b]).sum())
        assert row["lift"] == pytest.approx(row["n_both"] / n_tokens / (on[:, a].mean() * on[:, b].mean()))
    for feature in {row["feature"] for row in rows}:
        mine = [row["phi"] for row in rows if row["feature"] == feature]
        assert mine == sorted(mine, reverse=True)


def test_phrases_are_in_the_examples(found: FeaturesResult) -> None:
    examples = [e for e in found.examples if e.sequence_tokens is not None]
    rows = found.tables()["ngrams"].to_pylist()
    assert rows
    for row in rows[:60]:
        mine = [e for e in examples if e.feature == row["feature"]]
        hits = 0
        for e in mine:
            assert e.sequence_tokens is not None
            at, n = e.position, row["n_tokens"]
            span = (at + 1 - n, at + 1) if row["place"] == "ends here" else (at + 1, at + 2)
            text = "".join(found.token_names.get(int(t), "?") for t in e.sequence_tokens[max(0, span[0]) : span[1]])
            hits += text == row["text"]
        assert hits >= row["n_examples"] >= 2
        assert row["share"] == pytest.approx(row["n_examples"] / len(mine))


# -- long passes -------------------------------------------------------------------------------------------------------


def test_a_pass_that_was_cut_off_goes_on_to_the_same_tables(
    gpt2_mini: HookedModel,
    sae: SAE,
    val_tokens: TokenDataset,
    found: FeaturesResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = tmp_path / "state.safetensors"
    module = sys.modules["attlas.analyses.features.describe"]
    monkeypatch.setattr(module, "SAVE_EVERY", 1)
    whole = FeatureStream.add
    calls = 0

    def cut(self: FeatureStream, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        whole(self, *args, **kwargs)

    monkeypatch.setattr(FeatureStream, "add", cut)
    with pytest.raises(KeyboardInterrupt):
        features(gpt2_mini, sae, val_tokens, CONFIG, checkpoint=state)
    assert state.exists()
    with pytest.raises(ConfigError, match="state of another pass"):
        features(gpt2_mini, sae, val_tokens.take(5), CONFIG, checkpoint=state)
    again = features(gpt2_mini, sae, val_tokens, CONFIG, checkpoint=state)
    assert calls == 4 + 3  # three batches in all, of which two were done; and three of the sample of the null
    for name, table in found.tables().items():
        assert again.tables()[name].equals(table), name
    assert not state.exists()
    state.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="no state of a features pass"):
        features(gpt2_mini, sae, val_tokens, CONFIG, checkpoint=state)


def test_memory_does_not_grow_with_tokens() -> None:
    """Ten times the tokens, the same accumulators: only (feature, token) pairs grow, to at most F · vocabulary."""

    def size(n_batches: int) -> int:
        stream = FeatureStream(64, 4, 8)
        generator = torch.Generator().manual_seed(0)
        for _ in range(n_batches):
            values = torch.rand(4, 32, 5, generator=generator)
            indices = torch.randint(0, 64, (4, 32, 5), generator=generator)
            stream.add(values, indices, torch.randint(0, 50, (4, 32), generator=generator))
        sums = (stream.count, stream.total, stream.maximum, stream.histogram)
        kept = [
            getattr(k, name) for k in (stream.top, stream.sample) for name in ("key", "value", "sequence", "position")
        ]
        pairs = stream.pairs()
        assert len(pairs["key"]) <= 64 * 50
        return sum(t.nbytes for t in (*sums, *kept)) + sum(v.nbytes for v in pairs.values())

    assert size(200) <= size(20) * 1.02
    fixed = 64 * (28 + 8 * 40 + 16 * 12)
    assert size(200) <= fixed + 24 * 64 * 50


def test_image_features_have_patches(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    hook = "blocks.2.attn.hook_z"
    images = glyphs.take(12)
    result = features(vit_mini, random_sae(vit_mini, hook, images.pixels), images, CONFIG)
    rows = result.tables()["examples"].to_pylist()
    n_positions = vit_mini.cfg.n_prefix_tokens + vit_mini.cfg.grid[0] * vit_mini.cfg.grid[1]
    assert rows
    for row in rows:
        assert row["tokens"] == []
        assert len(row["activations"]) == n_positions
        assert row["activations"][row["position"]] == pytest.approx(row["activation"], rel=1e-5)
        assert 0 <= row["sequence"] < 12
    assert set(result.table().to_pandas().family) == {"unassigned"}


def test_bad_input(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    nameless = create_sae(SAEConfig(d_in=192, d_sae=16, k=2))
    with pytest.raises(ConfigError, match="give hook="):
        features(gpt2_mini, nameless, val_tokens, CONFIG)
    with pytest.raises(ConfigError, match="n_related 0"):
        FeaturesConfig(n_related=0)


def test_words_and_whole_texts_of_examples(
    found: FeaturesResult, val_tokens: TokenDataset, gpt2_mini: HookedModel
) -> None:
    tables = found.tables()
    texts = {row["sequence"]: row["tokens"] for row in tables["feature_texts"].to_pylist()}
    assert set(texts) == {e.sequence for e in found.examples}
    n = next(iter(texts))
    assert texts[n] == gpt2_mini.to_str_tokens(val_tokens.tokens[n].tolist())
    for e in found.examples[:40]:
        assert texts[e.sequence][e.start : e.start + len(e.tokens)] == e.tokens
    rows = tables["example_words"].to_pylist()
    word = max({row["word"] for row in rows}, key=len)
    mine = {row["feature"]: row["n_showing"] for row in rows if row["word"] == word}
    wanted: dict[int, int] = {}
    for e in found.examples:
        if word in "".join(e.tokens).lower():
            wanted[e.feature] = wanted.get(e.feature, 0) + 1
    assert mine == wanted
