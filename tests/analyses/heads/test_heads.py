"""Scores, account and gallery of heads, beside loops in float64 over the model's own attention maps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attlas.analyses.attention import map_anatomy
from attlas.analyses.heads import HeadAtlas, HeadsConfig, head_atlas
from attlas.analyses.heads.controls import random_model, shuffled
from attlas.analyses.heads.gallery import KeptRows, choose, read_edges
from attlas.analyses.heads.measure import measure
from attlas.analyses.heads.rules import IMAGE_RULES, TEXT_RULES, ImageRules, TextRules, Vocabulary
from attlas.data.images.dataset import ImageDataset
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel, load_model
from attlas.kernels.attention_tiles import Block

EARLY = EMBEDDED_DIR / "gpt2-mini" / "checkpoints" / "step-00250"
SMALL = HeadsConfig(batch_size=3, n_top=2, n_sampled=1, n_control=0)


@pytest.fixture(scope="module")
def text(val_tokens: TokenDataset) -> TokenDataset:
    return TokenDataset.from_tokens(val_tokens.tokens[:10, :40].contiguous(), "embedded:val")


@pytest.fixture(scope="module")
def atlas(gpt2_mini: HookedModel, text: TokenDataset) -> HeadAtlas:
    return head_atlas(gpt2_mini, text, SMALL)


@pytest.fixture(scope="module")
def maps(gpt2_mini: HookedModel, text: TokenDataset) -> Tensor:
    """[layer, sequence, head, query, key], float64."""
    cache = gpt2_mini.capture(text.tokens, "blocks.*.attn.hook_pattern")
    return torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"].double() for layer in range(gpt2_mini.cfg.n_layers)])


def test_headvis_metrics_by_its_definitions(atlas: HeadAtlas, maps: Tensor, text: TokenDataset) -> None:
    n_tokens = text.tokens.shape[1]
    at = torch.arange(n_tokens)
    distance = (at[:, None] - at).abs().double()
    own = maps.diagonal(0, -2, -1)
    expected = {
        "self_attention_score": own.mean((1, 3)),
        "prev_token_score": maps.diagonal(-1, -2, -1).mean((1, 3)),
        "pattern_entropy": -torch.special.xlogy(maps, maps).sum(-1).mean((1, 3)),
        "qk_distance": (maps * distance).sum(-1).mean((1, 3)),
        "sink_mass": maps[..., 1:, 0].mean((1, 3)),
        "max_weight": maps[..., 1:, :].amax(-1).mean((1, 3)),
        "active": ((1 - maps[..., 0] - own)[..., 1:] > 0.5).double().mean((1, 3)),
        "mean_activation": maps[..., 1:, 1:].amax((-1, -2)).mean(1),
    }
    square = (maps * distance**2).sum(-1).mean((1, 3))
    expected["qk_distance_variance"] = square - expected["qk_distance"] ** 2
    total = torch.zeros_like(expected["qk_distance"])
    n_repeats = 0
    for row, tokens in enumerate(text.tokens.tolist()):
        for query, token in enumerate(tokens):
            before = [j + 1 for j in range(query) if tokens[j] == token]
            n_repeats += bool(before)
            weights = maps[:, row, :, query, before]
            total += torch.where(weights < 0.01, 0, weights).sum(-1)
    expected["induction_score"] = total / n_repeats
    scores = atlas.scores()
    for name, value in expected.items():
        np.testing.assert_allclose(scores[name], value.numpy(), atol=2e-5, rtol=2e-5, err_msg=name)


def test_norms_are_those_of_the_heads_results(gpt2_mini: HookedModel, atlas: HeadAtlas, text: TokenDataset) -> None:
    cache = gpt2_mini.capture(text.tokens, ["blocks.2.attn.hook_result", "blocks.2.hook_resid_pre"])
    norms = cache["blocks.2.attn.hook_result"].double().norm(dim=-1)[:, 1:]  # [B, T − 1, H]
    ratio = norms / cache["blocks.2.hook_resid_pre"].double().norm(dim=-1)[:, 1:, None]
    np.testing.assert_allclose(atlas.sums.activation["norm"][:, 2], norms.amax(1), rtol=1e-4)
    np.testing.assert_allclose(atlas.scores()["output_ratio"][2], ratio.mean((0, 1)), rtol=1e-4)


def _rule(tokens: list[int], texts: list[str], query: int, key: int, alike: Tensor, window: int) -> str:
    """The account's rules in plain Python, for one pair."""
    own = tokens[query]
    words = np.cumsum([t[:1].isspace() or not any(c.isalnum() for c in t) for t in texts])
    marks = [not any(c.isalnum() for c in t) and "\\x" not in t and i != 0 for i, t in enumerate(texts)]
    ends = [j for j in range(query) if marks[j] and texts[j].strip(" ").endswith((".", "!", "?", "\n"))]
    for name, holds in (
        ("sink", key == 0),
        ("self", key == query),
        ("previous token", key == query - 1),
        ("duplicate token", tokens[key] == own),
        ("induction", key > 0 and tokens[key - 1] == own),
        ("induction, alike", key > 0 and bool(alike[query, key - 1])),
        ("same word", words[key] == words[query]),
        ("nearest delimiter", bool(ends) and key == ends[-1]),
        ("punctuation", marks[key]),
        ("local window", 0 < query - key < window),
    ):
        if holds:
            return name
    return "rest"


def test_rules_are_the_plain_ones(gpt2_mini: HookedModel, text: TokenDataset) -> None:
    vocabulary = Vocabulary.of(gpt2_mini)
    rules = TextRules(text.tokens[:2], vocabulary, window=5, alike=0.4)
    codes = rules.codes(Block(slice(0, 2), slice(7, 40), slice(0, 40)))
    embeddings = gpt2_mini.structure.embed.weight.detach().double()
    embeddings = embeddings - embeddings.mean(0)
    found = set()
    for row in range(2):
        tokens = text.tokens[row].tolist()
        texts = gpt2_mini.to_str_tokens(tokens)
        own = torch.nn.functional.normalize(embeddings[text.tokens[row]], dim=-1)
        for query in range(7, 40):
            for key in range(query + 1):
                name = rules.names[int(codes[row, query - 7, key])]
                assert name == _rule(tokens, texts, query, key, own @ own.T >= 0.4, 5), (row, query, key)
                found.add(name)
    assert found >= set(TEXT_RULES) - {"induction", "duplicate token"}


def test_an_account_is_whole_and_sees_induction(gpt2_mini: HookedModel, atlas: HeadAtlas, text: TokenDataset) -> None:
    np.testing.assert_allclose(atlas.account().sum(0), 1, atol=1e-5)
    half = text.tokens[:6, 1:20]
    repeated = TokenDataset.from_tokens(torch.cat([text.tokens[:6, :1], half, half], 1), "repeated")
    sums = measure(gpt2_mini, repeated, SMALL)
    share = atlas.account(sums)
    rules = sums.rules
    induction, sink = share[rules.index("induction")], share[rules.index("sink")]
    layer, head = np.unravel_index(np.argmax(induction / (1 - sink)), induction.shape)
    assert layer == 3, "gpt2-mini's induction heads lie in its last layer"
    natural = atlas.account()[rules.index("induction")]
    assert induction[layer, head] > 3 * natural[layer, head]
    mixed = atlas.account(measure(gpt2_mini, shuffled(repeated, seed=1), SMALL))
    assert mixed[rules.index("induction"), layer, head] < induction[layer, head] / 2


def test_induction_by_one_definition(
    gpt2_mini: HookedModel, atlas: HeadAtlas, maps: Tensor, text: TokenDataset
) -> None:
    assert atlas.strongest("repeat_induction") == (3, 0)
    assert atlas.strongest("prev_token_score") == (2, 0)
    assert {atlas.summary()[f"top_{kind}_head"] for kind in ("induction", "prev_token")} == {"3.0", "2.0"}
    anatomy = map_anatomy(gpt2_mini, text.take(1))
    np.testing.assert_allclose(anatomy.columns["repeat_induction"], atlas.scores()["repeat_induction"], atol=1e-6)
    assert anatomy.summary()["induction_head"] == "3.0"
    rules, twice = atlas.sums.rules, atlas.account(atlas.controls["repeated"], repeats=True)
    sink, induction = (twice[rules.index(name), 3, 0] for name in ("sink", "induction"))
    assert induction >= 0.5 * (1 - sink), "of queries that have something to repeat"
    total, n = 0.0, 0
    for row, tokens in enumerate(text.tokens.tolist()):
        for query in range(1, len(tokens)):
            n += tokens[query] in tokens[:query]
            if tokens[query] in tokens[:query]:
                total += float(maps[3, row, 0, query, 0])
    assert atlas.account(repeats=True)[0, 3, 0] == pytest.approx(total / n, abs=1e-5)
    row = next(
        r for r in atlas.tables()["head_account"].to_pylist() if (r["layer"], r["head"], r["rule"]) == (3, 0, "sink")
    )
    assert row["share_repeated"] == pytest.approx(sink)
    assert row["share_repeats"] == pytest.approx(total / n, abs=1e-5)


def test_excess_over_a_control(gpt2_mini: HookedModel, text: TokenDataset) -> None:
    # Random tokens: on natural text said twice even step 250 is a little above shuffled text, by what words repeat anyway.
    half = torch.randint(100, 1000, (len(text.tokens), 19), generator=torch.Generator().manual_seed(0))
    twice = TokenDataset.from_tokens(torch.cat([text.tokens[:, :1], half, half], 1), "repeated")
    trained, early = (
        head_atlas(model, twice, dataclasses.replace(SMALL, n_control=10, n_repeats=0))
        for model in (gpt2_mini, load_model(EARLY, device="cpu"))
    )
    assert trained.above_control("induction")[1][3, 0] > 0.02
    assert (early.above_control("induction")[1] <= 0).all(), "250 steps make no induction head"
    with pytest.raises(ConfigError, match="'repeated' was not measured"):
        trained.above_control("rest", "repeated")


def test_controls_differ_and_keep_their_shape(
    gpt2_mini: HookedModel, vit_mini: HookedModel, text: TokenDataset, glyphs: ImageDataset
) -> None:
    before = torch.random.get_rng_state()
    fresh = random_model(gpt2_mini, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert fresh.cfg == gpt2_mini.cfg
    assert not torch.equal(fresh.W_O(0), gpt2_mini.W_O(0))
    mixed = shuffled(text, seed=1)
    assert torch.equal(mixed.tokens[:, 0], text.tokens[:, 0])
    assert torch.equal(mixed.tokens.sort(1).values, text.tokens.sort(1).values)
    images = shuffled(glyphs.take(3), vit_mini.cfg.patch_size, seed=1)
    assert images.pixels.shape == glyphs.take(3).pixels.shape
    assert not torch.equal(images.pixels, glyphs.take(3).pixels)
    torch.testing.assert_close(images.pixels.flatten(1).sort(1).values, glyphs.take(3).pixels.flatten(1).sort(1).values)


def test_intervals_of_the_gallery() -> None:
    activation = np.array([5.0, 1, 9, 9, 3, 2, 8, 7, 4, 6])
    config = dataclasses.replace(SMALL, n_intervals=5, n_top=3, n_sampled=1)
    found = choose(activation, config, np.arange(10)[::-1])
    assert [row for row in found if row[0] == 4] == [(4, 0, 2), (4, 1, 3)]  # ties: the lower sequence first
    assert [row[0] for row in found] == [4, 4, 3, 2, 1, 0]
    assert [row[2] for row in found[2:]] == [7, 9, 8, 5], "of each part the first in the drawing order"
    edges = np.quantile(activation, (0.2, 0.4, 0.6, 0.8))
    for interval, _, sequence in found:
        assert interval == np.searchsorted(edges, activation[sequence], side="right")
    one = choose(activation[:1], config, np.arange(1))
    assert one == [(4, 0, 0)]


def test_kept_weights_are_the_strongest_of_each_query(atlas: HeadAtlas, maps: Tensor) -> None:
    assert {c.by for c in atlas.chosen} == {"weight", "norm", "rest"}
    for (layer, head, sequence), edges in list(atlas.edges.items())[::7]:
        weights = maps[layer, sequence, head]
        for query in range(weights.shape[0]):
            kept = edges.query == query
            strong = (weights[query] >= 0.005).sum()
            assert kept.sum() == min(8, int(strong))
            best = weights[query].sort(descending=True).values[: int(kept.sum())]
            np.testing.assert_allclose(edges.weight[kept], best.numpy(), atol=6e-5)
            np.testing.assert_allclose(weights[query, edges.key[kept]].numpy(), edges.weight[kept], atol=6e-5)


def test_rows_do_not_depend_on_what_the_pass_kept(gpt2_mini: HookedModel, text: TokenDataset, atlas: HeadAtlas) -> None:
    few = KeptRows(SMALL, len(text), most_bytes=0)  # the strongest of each head alone
    measure(gpt2_mini, text, SMALL, rows=few)
    kept = [c for c in atlas.chosen if few.get((c.layer, c.head, c.sequence)) is not None]
    assert {c.interval for c in kept} >= {4}
    assert len({(c.layer, c.head, c.sequence) for c in kept}) < len(atlas.edges), "all were kept, so nothing is tested"
    assert all(c in kept for c in atlas.chosen if c.interval == 4), "the strongest are always kept"
    nothing, some = (read_edges(gpt2_mini, text, atlas.chosen, SMALL, kept=rows) for rows in (None, few))
    for place, edges in atlas.edges.items():
        for found in (nothing[place], some[place]):
            np.testing.assert_array_equal(found.query, edges.query)
            np.testing.assert_allclose(found.weight, edges.weight, atol=1.1e-4)
    held = KeptRows(SMALL, len(text), most_bytes=0)
    held.add(
        0, torch.ones(3, 1, 1, 2, 1), torch.zeros(3, 1, 1, 2, 1), {"weight": np.array([1.0, 3, 2]).reshape(3, 1, 1)}
    )
    held.add(3, torch.ones(2, 1, 1, 2, 1), torch.zeros(2, 1, 1, 2, 1), {"weight": np.array([3.0, 0]).reshape(2, 1, 1)})
    assert [held.get((0, 0, s)) is not None for s in range(5)] == [False, True, False, True, False]


def test_a_pass_goes_on_from_its_state(
    gpt2_mini: HookedModel, text: TokenDataset, atlas: HeadAtlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attlas.analyses.heads.pass_state.EVERY_SECONDS", -1.0)
    state, batches = tmp_path / "heads.state", []

    class Stopped(Exception): ...

    class Track:
        def __call__(self, iterable: object, description: str, total: int | None = None) -> object:
            for batch in iterable:  # type: ignore[attr-defined]
                if description == "heads" and len(batches) == 2:
                    raise Stopped
                batches.append(batch)
                yield batch

        def news(self, text: str, rows: object = ()) -> None: ...

    with pytest.raises(Stopped):
        head_atlas(gpt2_mini, text, SMALL, checkpoint=state, track=Track())  # type: ignore[arg-type]
    assert state.exists()
    with pytest.raises(ConfigError, match="another pass"):
        head_atlas(gpt2_mini, text, dataclasses.replace(SMALL, window=4), checkpoint=state)
    again = head_atlas(gpt2_mini, text, SMALL, checkpoint=state)
    assert not state.exists()
    for name, table in atlas.tables().items():
        assert again.tables()[name].equals(table), name


def test_images(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    found = head_atlas(vit_mini, glyphs.take(6), SMALL)
    assert found.sums.rules == tuple(IMAGE_RULES)
    np.testing.assert_allclose(found.account().sum(0), 1, atol=1e-5)
    assert np.isnan(found.scores()["qk_distance"]).all()
    maps = vit_mini.capture(glyphs.take(6).pixels, "blocks.1.attn.hook_pattern")["blocks.1.attn.hook_pattern"].double()
    share = found.account()
    np.testing.assert_allclose(share[found.sums.rules.index("CLS"), 1], maps[..., 1:, 0].mean((0, 2)), atol=1e-5)
    rules = ImageRules((8, 8), 1)
    codes = rules.codes(Block(slice(0, 1), slice(0, 65), slice(0, 65)))[0]
    names = np.array(rules.names)[codes.numpy()]
    assert [names[1 + 9, key] for key in (0, 10, 1, 1 + 3, 1 + 63)] == ["CLS", "self", "ring 1", "ring 2", "rest"]
    assert (names[1 + 9] == "ring 1").sum() == 8
    high = torch.zeros(2, 65, dtype=torch.bool)
    high[1, 20] = True
    both = rules.with_high_norm(codes[None], high)
    assert rules.names[int(both[1, 30, 20])] == "high norm"
    assert torch.equal(both[0], codes)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="n_top 0"):
        HeadsConfig(n_top=0)
    with pytest.raises(ConfigError, match=r"active 1\.5"):
        HeadsConfig(active=1.5)
