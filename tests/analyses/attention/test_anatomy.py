"""Anatomy of maps, selection layers, window loss and cost against whole maps in float64."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.attention.anatomy import AnatomyConfig, AnatomyResult, map_anatomy
from attlas.analyses.attention.cost import CostConfig, cost_profile
from attlas.analyses.attention.selection import SelectionConfig, best_partition, selection_layers
from attlas.analyses.attention.windows import WindowConfig, window_loss
from attlas.cli import main
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel

CONFIG = AnatomyConfig(windows=(4, 16), top_k=(1, 5), batch_size=3)


@pytest.fixture(scope="module", params=["gpt2_mini", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> HookedModel:
    found: HookedModel = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def text(model: HookedModel) -> TokenDataset:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 40, (5, 48), generator=generator)  # few tokens, so that they come again
    return TokenDataset(tokens, "random", "0" * 16)


@pytest.fixture(scope="module")
def maps(model: HookedModel, text: TokenDataset) -> np.ndarray:
    """[layer, sequence, head, query, key] from the model's own eager attention."""
    with torch.no_grad():
        cache = model.capture(text.tokens, "blocks.*.attn.hook_pattern")
    return np.stack([cache[f"blocks.{i}.attn.hook_pattern"].double().numpy() for i in range(model.cfg.n_layers)])


@pytest.fixture(scope="module")
def anatomy(model: HookedModel, text: TokenDataset) -> AnatomyResult:
    return map_anatomy(model, text, CONFIG)


def test_every_column_is_that_of_whole_maps(
    anatomy: AnatomyResult, maps: np.ndarray, text: TokenDataset, model: HookedModel
) -> None:
    tokens = text.tokens.numpy()
    T = tokens.shape[1]
    i, j = np.indices((T, T))
    same = tokens[:, :, None] == tokens[:, None, :]  # [sequence, query, key]
    after = np.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]
    after &= (j <= i)[None]
    copies = same & (j < i)[None]

    def mean(values: np.ndarray) -> np.ndarray:
        """[layer, sequence, head, query] → [layer, head], query 0 left out."""
        return values[..., 1:].mean((1, 3))

    entropy = -(maps * np.log(np.maximum(maps, 1e-300))).sum(-1)
    expected = {
        "entropy": entropy,
        "max_weight": maps.max(-1),
        "sink_mass": maps[..., 0],
        "diagonal": np.diagonal(maps, axis1=-2, axis2=-1),
        "previous_token": (maps * (j == i - 1)).sum(-1),
        "duplicate_token": (maps * copies[None, :, None]).sum(-1),
        "induction": (maps * after[None, :, None]).sum(-1),
        "mean_distance": (maps * (i - j)).sum(-1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(anatomy.columns[name], mean(values), atol=2e-5, err_msg=name)
    normalized = entropy[..., 1:] / np.log(np.arange(2, T + 1))
    np.testing.assert_allclose(anatomy.columns["normalized"], normalized.mean((1, 3)), atol=2e-5)
    for width in CONFIG.windows:
        np.testing.assert_allclose(anatomy.masses["window", width], mean((maps * (i - j < width)).sum(-1)), atol=2e-5)
    for k in CONFIG.top_k:
        largest = np.sort(maps, axis=-1)[..., ::-1][..., :k].sum(-1)
        np.testing.assert_allclose(anatomy.masses["top_k", k], mean(largest), atol=2e-5)
    np.testing.assert_allclose(anatomy.column_mass, maps.sum(3).mean(1), atol=1e-4)


def test_distances_share_out_all_mass(anatomy: AnatomyResult) -> None:
    total = sum(value for (kind, _), value in anatomy.masses.items() if kind == "distance")
    np.testing.assert_allclose(total, 1.0, atol=1e-4)


def test_labels_of_known_heads(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    labels = map_anatomy(gpt2_mini, val_tokens, AnatomyConfig(windows=(8,))).labels()
    assert labels[3, 0] == labels[3, 4] == "induction"
    assert labels[2, 0] == "previous token"
    assert set(labels[0]) <= {"broad", "unassigned"}


def test_ranking_agrees_with_transformer_lens(gpt2_mini: HookedModel) -> None:
    """`detect_head` on the same repeated tokens: the types that it has, ranked alike (mul error measure)."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.head_detector import detect_head

    from attlas.analyses.common.repeats import repeat_scores, repeated_tokens

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokens = repeated_tokens(gpt2_mini, n=1, length=60)
    with torch.no_grad():
        cache = gpt2_mini.capture(tokens, "blocks.*.attn.hook_pattern")
    ours = repeat_scores(gpt2_mini, tokens)
    cfg = gpt2_mini.cfg
    patterns = {("pattern", i, "attn"): cache[f"blocks.{i}.attn.hook_pattern"][0] for i in range(cfg.n_layers)}
    # detect_head reads patterns from a cache; the model is only asked for its shape and tokens.
    shell = HookedTransformer(
        HookedTransformerConfig(
            n_layers=cfg.n_layers, d_model=12, n_ctx=256, d_head=2, n_heads=cfg.n_heads, act_fn="relu", d_vocab=50
        )
    )
    shell.to_tokens = lambda *_args, **_kwargs: tokens  # type: ignore[method-assign]
    half = (tokens.shape[1] - 1) // 2
    for kind, name in (("previous_token_head", "previous_token"), ("induction_head", "induction")):
        theirs = detect_head(shell, "unused", kind, cache=patterns, error_measure="mul").numpy()
        assert np.unravel_index(theirs.argmax(), theirs.shape) == np.unravel_index(ours[name].argmax(), theirs.shape)
        strong = ours[name] > 0.2
        assert strong.sum() >= 2
        assert (np.argsort(theirs[strong]) == np.argsort(ours[name][strong])).all(), name
    assert half == 60


def test_images_have_no_token_scores(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    result = map_anatomy(vit_mini, glyphs.take(8), CONFIG)
    assert np.isfinite(result.columns["entropy"]).all()
    for name in ("previous_token", "induction", "mean_distance", "repeat_induction", "local"):
        assert np.isnan(result.columns[name]).all()
    assert not any(kind in ("window", "distance") for kind, _ in result.masses)


# -- selection ---------------------------------------------------------------------------------------------------------


def test_coverage_of_whole_maps(model: HookedModel, text: TokenDataset, maps: np.ndarray) -> None:
    k = 6
    result = selection_layers(model, text, SelectionConfig(top_k=(k,), mass=0.8))
    mean = maps.mean(2)  # over heads: [layer, sequence, query, key]
    for selector, layer in itertools.product(range(model.cfg.n_layers), repeat=2):
        values = []
        for s, q in itertools.product(range(maps.shape[1]), range(k, maps.shape[3])):
            keys = np.argsort(-mean[selector, s, q])[:k]
            values.append(mean[layer, s, q, keys].sum())
        assert result.coverage[k][selector, layer] == pytest.approx(np.mean(values), abs=1e-4)
    ordered = np.cumsum(np.sort(maps, axis=-1)[..., ::-1], -1)
    needed = 1 + (ordered < 0.8 - 1e-9).sum(-1)
    assert np.abs(result.keys - needed.mean((1, 3))).max() < 0.05  # float32 sums at the threshold


def test_best_partition_is_the_best_of_all() -> None:
    generator = np.random.default_rng(0)
    for n in (1, 3, 6):
        coverage = generator.random((n, n))
        for n_full in range(1, n + 1):
            best = -1.0
            for others in itertools.combinations(range(1, n), n_full - 1):
                full = (0, *others)
                value = np.mean([1.0 if x in full else coverage[max(f for f in full if f < x), x] for x in range(n)])
                best = max(best, float(value))
            found = best_partition(coverage, n_full)
            assert found.value == pytest.approx(best)
            assert sum(found.selector[x] == x for x in range(n)) == n_full
    with pytest.raises(ConfigError, match="within 1 … 3"):
        best_partition(np.eye(3), 4)


# -- window loss -------------------------------------------------------------------------------------------------------


def test_window_loss_is_that_of_the_masked_model(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    """Against Hugging Face's eager attention with the mask put in by hand, all layers at once."""
    data = val_tokens.take(3)
    result = window_loss(gpt2_mini, data, WindowConfig(windows=(8, 128), sinks=2))
    np.testing.assert_allclose(result.delta[128], 0, atol=1e-5)  # as long as the text: nothing is hidden
    T = data.tokens.shape[1]
    i, j = np.indices((T, T))
    allowed = torch.tensor((j <= i) & ((i - j < 8) | (j < 2)))
    mask = torch.zeros(1, 1, T, T).masked_fill(~allowed, torch.finfo(torch.float32).min)
    with torch.no_grad():
        losses = []
        for attention_mask in (None, mask.expand(3, 1, T, T)):
            logits = gpt2_mini.hf(data.tokens, attention_mask=attention_mask).logits
            losses.append(
                float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), data.tokens[:, 1:].flatten()))
            )
    assert result.base_loss == pytest.approx(losses[0], abs=1e-4)
    assert result.delta[8][-1] == pytest.approx(losses[1] - losses[0], abs=1e-3)
    assert result.delta[8][-1] > 0.1


def test_window_loss_refuses_what_has_no_loss(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    import dataclasses

    with pytest.raises(UnsupportedModelError, match="no loss to compare"):
        window_loss(vit_mini, dataclasses.replace(glyphs.take(2), labels=None))


# -- cost --------------------------------------------------------------------------------------------------------------


def test_cost_counts_the_arithmetic(gpt2_mini: HookedModel) -> None:
    result = cost_profile(gpt2_mini, CostConfig(lengths=(32, 64), repeats=2))
    rows = result.table().to_pylist()
    cfg = gpt2_mini.cfg
    for row in rows:
        T, B = row["seq_len"], row["batch_size"]
        attention = row["module"] == "attn"
        weights = 4 * cfg.d_model**2 if attention else 2 * cfg.d_model * cfg.d_mlp
        assert row["flops_projection"] == pytest.approx(2 * B * T * weights)
        mixing = 4 * B * T**2 * cfg.n_heads * cfg.d_head / 2 if attention else 0
        assert row["flops_mixing"] == pytest.approx(mixing)
        assert row["seconds"] > 0
    assert {row["layer"] for row in rows} == set(range(4))


def test_default_windows_fit_the_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight hops would cover the whole of an 8 × 8 grid, and limit nothing."""
    where = ["--workspace", str(tmp_path)]
    assert main(["entropy", "window-loss", "--model", "vit-mini", "--n-images", "8", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["window"] == 2
    run = Workspace(tmp_path).runs("window_loss")[0]
    table = Workspace(tmp_path).read_table(run, "window_loss").to_pandas()
    assert sorted(set(table.window)) == [2, 4]
    assert table[(table.layer == 0) & (table.window == 2)].delta.iloc[0] > 0.1
