"""ViT head analyses against literal readings of their definitions."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from attlas.analyses.common.fills import donors
from attlas.analyses.vit.heads import VitConfig, vit
from attlas.analyses.vit.importance import head_importance, jensen_shannon
from attlas.analyses.vit.strength import head_strength
from attlas.data.images.dataset import ImageDataset
from attlas.data.stats import bootstrap_mean
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.interp.prefix import Suffix, entering, last_layer_for_prefix, reads_prefix_alone


def test_suffix_equals_the_whole_model(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    with torch.no_grad():
        logits, cache = vit_mini.run_with_cache(glyphs.pixels, ["*hook_resid_pre", "ln_final.hook_normalized"])
        for layer in range(4):
            ours, state = Suffix(vit_mini, layer)(cache[f"blocks.{layer}.hook_resid_pre"])
            torch.testing.assert_close(ours, logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(state, cache["ln_final.hook_normalized"], atol=1e-5, rtol=0)
        assert torch.equal(vit_mini(glyphs.pixels), logits)


@pytest.mark.parametrize("kind", ["deit", "dinov2"])
def test_suffix_of_other_families(kind: str) -> None:
    import transformers

    common = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    if kind == "dinov2":
        hf = transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**common, num_labels=5))
    else:
        hf = transformers.DeiTForImageClassification(transformers.DeiTConfig(**common, num_labels=5))
    model = load_model(hf)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        logits, cache = model.run_with_cache(pixels, "blocks.1.hook_resid_pre")
        torch.testing.assert_close(Suffix(model, 1)(cache["blocks.1.hook_resid_pre"])[0], logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "reads_prefix"), [("Dinov2Model", True), ("Dinov2ForImageClassification", False)])
def test_the_last_layer_leaves_out_patches_only_where_nothing_reads_them(kind: str, reads_prefix: bool) -> None:
    import transformers

    common = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    model = load_model(getattr(transformers, kind)(transformers.Dinov2Config(**common, num_labels=5)).eval())
    pixels, suffix = torch.randn(2, 3, 16, 16), Suffix(model, 1)
    with torch.no_grad():
        residual = entering(model, pixels)[1]
        _, whole = suffix(residual)
        assert reads_prefix_alone(model, pixels[:1]) is reads_prefix
        with last_layer_for_prefix(model):
            _, state = suffix(residual)
        torch.testing.assert_close(state, whole[:, :1], atol=1e-5, rtol=0)
        torch.testing.assert_close(suffix(residual)[1], whole, atol=0, rtol=0)


def test_importance_counts_passes_not_batches(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    totals: list[int | None] = []

    def track(items, description, total=None):  # type: ignore[no-untyped-def]
        if description == "pruning heads":
            totals.append(total)
            items = list(items)
            assert len(items) == total
        yield from items

    head_importance(vit_mini, glyphs.take(8), ablations=("zero",), track=track)
    assert totals[0] is not None
    assert totals[0] >= vit_mini.cfg.n_layers


def _double(model: HookedModel) -> HookedModel:
    twin = type(model.hf)(model.hf.config).eval()
    twin.load_state_dict(model.hf.state_dict())
    return load_model(twin.double())


@torch.no_grad()
def _by_hand(model: HookedModel, pixels: torch.Tensor, layer: int, head: int, fill: torch.Tensor) -> torch.Tensor:
    """Class probabilities of the whole model with one head's z overwritten, [B, n_classes]."""

    def ablate(z: torch.Tensor, _name: str) -> torch.Tensor:
        z = z.clone()
        z[:, :, head] = fill
        return z

    with model.hooks({f"blocks.{layer}.attn.hook_z": ablate}):
        return model(pixels).softmax(-1)


def test_importance_equals_pruning_the_whole_model(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    """All four ablations against whole float64 passes; the donors of "resample" are read off the images themselves."""
    few, names = glyphs.take(9), ("mean_per_position", "zero", "mean", "resample")
    found = head_importance(vit_mini, few, ablations=names, batch_size=7, resample_draws=2, seed=3)
    assert few.labels is not None
    double, pixels, rows = _double(vit_mini), few.pixels.double(), torch.arange(9)
    with torch.no_grad():
        z = double.capture(pixels, "blocks.*.attn.hook_z")
        clean = double(pixels).softmax(-1)
    others = donors(9, 2, 3)
    assert (others != rows).all()
    for layer, head in [(0, 1), (2, 5), (3, 0)]:
        mine = z[f"blocks.{layer}.attn.hook_z"][:, :, head]
        fills = {
            "mean_per_position": [mine.mean(0)],
            "zero": [torch.zeros(())],
            "mean": [mine.mean((0, 1))],
            "resample": [mine[draw] for draw in others],
        }
        told = {}
        for entry in found:
            after = [_by_hand(double, pixels, layer, head, fill) for fill in fills[entry.ablation]]
            drop = torch.stack([(clean - a)[rows, few.labels] for a in after]).mean(0).numpy()
            np.testing.assert_allclose(entry.per_image["prob_drop"][:, layer, head], drop, atol=1e-5)
            js = [[jensenshannon(p, q) ** 2 for p, q in zip(clean, a, strict=True)] for a in after]
            told[entry.ablation] = np.mean(js, 0)
            np.testing.assert_allclose(entry.per_image["js"][:, layer, head], told[entry.ablation], atol=1e-5)
        for name in ("zero", "mean", "resample"):  # another ablation is another number
            assert np.abs(told[name] - told["mean_per_position"]).max() > 1e-4


def test_only_the_mean_at_each_position_leaves_alone_what_does_not_depend_on_the_image(
    vit_mini: HookedModel, glyphs: ImageDataset
) -> None:
    """Heads that attend and read by position alone: no image is in z, so taking images away must change nothing."""
    model = load_model(copy.deepcopy(vit_mini.hf))
    with torch.no_grad():
        model.structure.embed.patch_embeddings.projection.weight.zero_()  # what is left is the positions
    names = ("mean_per_position", "resample", "mean", "zero")
    found = {e.ablation: e.per_image["js"] for e in head_importance(model, glyphs.take(4), ablations=names)}
    assert max(np.abs(found[name]).max() for name in ("mean_per_position", "resample")) < 1e-6
    assert min(found[name][:, 0].max() for name in ("mean", "zero")) > 1e-4


def test_resampling_needs_another_image_and_gives_means_of_draws(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    with pytest.raises(ConfigError, match="another input"):
        head_importance(vit_mini, glyphs.take(1), ablations=("resample",))
    config = VitConfig(("importance",), ("zero", "resample"), resample_draws=2, n_bootstrap=20)
    result = vit(vit_mini, glyphs.take(8), config)
    rows = result.tables()["importance"].to_pylist()
    halves = [r for r in rows if (r["ablation"], r["metric"]) == ("resample", "accuracy_drop")]
    assert all(r["low"] - 1e-9 <= r["value"] <= r["high"] + 1e-9 for r in halves)
    assert result.summary()["ablation"] == "zero"


def test_strength_equals_loops(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    few = glyphs.take(3)
    found = head_strength(vit_mini, few, batch_size=2)
    pattern = vit_mini.capture(few.pixels, "blocks.1.attn.hook_pattern")["blocks.1.attn.hook_pattern"].double()
    for head in (0, 4):
        mass, pairs, total, reach = np.zeros(8), np.zeros(8), 0.0, 0.0
        shares: list[list[float]] = [[] for _ in range(8)]
        recentred = np.zeros((15, 15))
        seen = np.zeros((15, 15))
        for image in range(3):
            a = pattern[image, head].numpy()
            for q in range(64):
                weights = a[1 + q, 1:]
                far = [np.hypot(s // 8 - q // 8, s % 8 - q % 8) for s in range(64)]
                reach += 4 * (weights * far).sum() / weights.sum()
                total += 1
                for hop in range(8):
                    ring = [s for s in range(64) if max(abs(s // 8 - q // 8), abs(s % 8 - q % 8)) == hop]
                    shares[hop] += [weights[ring].mean()] if ring else []
                for s in range(64):
                    dy, dx = s // 8 - q // 8, s % 8 - q % 8
                    hop = max(abs(dy), abs(dx))
                    mass[hop] += weights[s]
                    pairs[hop] += 1
                    recentred[dy + 7, dx + 7] += weights[s]
                    seen[dy + 7, dx + 7] += 1
        np.testing.assert_allclose(found.ring_mass[1, head], mass / total, atol=1e-6)
        np.testing.assert_allclose(found.ring_mean[1, head], mass / pairs, atol=1e-6)
        by_query = [np.mean(values) for values in shares]
        np.testing.assert_allclose(found.ring_mean_by_query[1, head], by_query, atol=1e-6)
        assert np.abs(found.ring_mean - found.ring_mean_by_query)[1, head].max() > 1e-4  # the weighting matters
        np.testing.assert_allclose(found.distance[1, head], reach / total, atol=1e-4)
        np.testing.assert_allclose(found.maps[1, head], recentred / seen, atol=1e-6)
    rows = found.ring_mass.sum(-1) + found.mean("patch_to_prefix")
    np.testing.assert_allclose(rows, 1, atol=1e-5)
    assert ((found.map_variation >= 0) & (found.map_variation <= 1)).all()


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=6), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_jensen_shannon_is_bounded_and_symmetric(raw: list[float], seed: int) -> None:
    p = torch.tensor(raw, dtype=torch.float64)
    q = p[torch.randperm(len(raw), generator=torch.Generator().manual_seed(seed))]
    p, q = p / p.sum(), q / q.sum()
    assert 0 <= jensen_shannon(p, q) + 1e-12 <= np.log(2) + 1e-9
    assert jensen_shannon(p, q).item() == pytest.approx(jensen_shannon(q, p).item(), abs=1e-12)


def test_bootstrap_covers_a_known_mean() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        _, low, high = bootstrap_mean(rng.normal(1.0, 1.0, (60, 1)), n_samples=300, seed=seed)
        inside += int(low[0] <= 1.0 <= high[0])
    assert 0.89 <= inside / 200 <= 0.99


def test_result_matches_the_card_and_is_saved(vit_mini: HookedModel, glyphs: ImageDataset, tmp_path: Path) -> None:
    """The card: every head of layer 0 matters, no head of layers 1–3 does."""
    result = vit(vit_mini, glyphs, VitConfig(ablations=("zero",), n_bootstrap=100))
    drop = result.heatmap("accuracy_drop")
    assert drop[0].min() > 0.1
    assert drop[1:].max() < 0.06
    run = result.save(Workspace(tmp_path / "ws"), vit_mini.ref, glyphs.ref)
    table = Workspace(tmp_path / "ws").read_table(run, "importance")
    assert table.num_rows == 24 * 4
    rows = table.to_pylist()
    assert all(r["low"] - 1e-9 <= r["value"] <= r["high"] + 1e-9 for r in rows)
    assert Workspace(tmp_path / "ws").read_arrays(run, "maps")["recentred"].shape == (4, 6, 15, 15)


def test_bad_input(gpt2_mini: HookedModel, glyphs: ImageDataset) -> None:
    with pytest.raises(UnsupportedModelError, match="reads no images; give a ViT"):
        vit(gpt2_mini, glyphs)
    with pytest.raises(ConfigError, match="choose from mean_per_position, zero"):
        VitConfig(ablations=("nothing",))
