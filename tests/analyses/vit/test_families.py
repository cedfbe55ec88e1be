"""ViT head analyses on every family: no CLS, registers, distillation token, non-square grids, other sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attlas.analyses.vit.heads import VitConfig, vit
from attlas.analyses.vit.readout import classifier_labels, make_readout, metric_mean
from attlas.data.images.dataset import ImageDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel, load_model

SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4, "intermediate_size": 48}


def tiny(kind: str, size: Any = 16, classes: int = 5) -> HookedModel:
    """A random ViT whose attention is far from uniform."""
    import transformers as tf

    torch.manual_seed(3)
    common = {**SHAPE, "image_size": size, "num_labels": classes}
    if kind == "vit":
        hf: Any = tf.ViTForImageClassification(tf.ViTConfig(**common))
    elif kind == "deit":
        hf = tf.DeiTForImageClassification(tf.DeiTConfig(**common))
    elif kind == "ijepa":
        hf = tf.IJepaForImageClassification(tf.IJepaConfig(**common))
    elif kind == "registers":
        hf = tf.Dinov2WithRegistersForImageClassification(tf.Dinov2WithRegistersConfig(**common, num_register_tokens=3))
    elif kind == "dinov2":
        hf = tf.Dinov2ForImageClassification(tf.Dinov2Config(**common))
    else:
        hf = tf.Dinov2Model(tf.Dinov2Config(**common))
    for parameter in hf.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.3)
    return load_model(hf)


def random_images(
    n: int = 6,
    size: tuple[int, int] = (16, 16),
    labels: torch.Tensor | None = None,
    names: tuple[str, ...] | None = None,
) -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(n, 3, *size, generator=generator)
    return ImageDataset(pixels, np.zeros((n, *size, 3), np.uint8), labels, names, "random", "0" * 16)


@pytest.mark.parametrize(
    ("kind", "size", "prefix"),
    [
        ("vit", (16, 16), 1),
        ("vit", (12, 20), 1),
        ("deit", (16, 16), 2),
        ("ijepa", (16, 16), 0),
        ("registers", (16, 16), 4),
        ("dinov2", (16, 16), 1),
        ("backbone", (16, 16), 1),
    ],
)
def test_every_family(kind: str, size: tuple[int, int], prefix: int) -> None:
    model = tiny(kind, size if size[0] != size[1] else size[0])
    images = random_images(size=size)
    assert model.cfg.n_prefix_tokens == prefix
    result = vit(model, images, VitConfig(n_bootstrap=20, batch_size=4))
    strength, rows, columns = result.strength, size[0] // 4, size[1] // 4
    assert strength is not None
    assert strength.maps.shape == (2, 4, 2 * rows - 1, 2 * columns - 1)
    np.testing.assert_allclose(strength.ring_mass.sum(-1) + strength.mean("patch_to_prefix"), 1, atol=1e-5)
    assert (strength.mean("patch_to_registers") > 0).all() == (prefix > 1)
    np.testing.assert_allclose(
        strength.mean("patch_to_cls") + strength.mean("patch_to_registers"), strength.mean("patch_to_prefix"), atol=1e-6
    )
    # the same head pruned on the whole model, by hand
    with torch.no_grad():
        names = ["ln_final.hook_normalized"]
        logits, cache = model.run_with_cache(images.pixels, names)
        prune = {"blocks.1.attn.hook_z": lambda z, _: z * (torch.arange(4) != 2)[None, None, :, None]}
        with model.hooks(prune):
            logits_after, cache_after = model.run_with_cache(images.pixels, names)
    state, after = cache[names[0]], cache_after[names[0]]
    pooled = (state[:, 0], after[:, 0]) if prefix else (state.mean(1), after.mean(1))
    wanted = 1 - torch.nn.functional.cosine_similarity(*pooled)
    found = next(e.per_image for e in result.importance if e.ablation == "zero")
    np.testing.assert_allclose(found["cls_distance"][:, 1, 2], wanted, atol=1e-5)
    if kind == "backbone":
        assert set(found) == {"cls_distance"}
    else:
        p, q = logits.softmax(-1), logits_after.softmax(-1)
        own = p.argmax(-1)[:, None]
        np.testing.assert_allclose(found["prob_drop"][:, 1, 2], (p - q).gather(1, own)[:, 0], atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2", "vit", "ijepa"])
def test_images_of_other_sizes_have_maps_of_their_own_grid(kind: str) -> None:
    result = vit(tiny(kind), random_images(4, (24, 12)), VitConfig(n_bootstrap=20))
    assert result.strength is not None
    assert result.strength.maps.shape[2:] == (11, 5)


@pytest.mark.parametrize(
    ("own", "size", "match"), [((8, 32), (16, 16), "takes images of"), (16, (18, 16), "whole number")]
)
def test_images_of_a_wrong_size_are_refused(own: Any, size: tuple[int, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        vit(tiny("vit", own), random_images(2, size))


def test_no_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="no images"):
        vit(tiny("vit"), random_images(2).take(0))


def test_labels_find_the_classifiers_numbering() -> None:
    model = tiny("vit", classes=3)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    model.hf.config.id2label = {0: "Cat", 1: "dog", 2: "owl"}
    swapped = classifier_labels(model, random_images(labels=labels, names=("owl", "cat", "Dog")))
    assert swapped is not None
    assert swapped.tolist() == [2, 0, 1, 1, 0, 2]
    assert classifier_labels(model, random_images(labels=labels, names=("a", "b", "c"))) is None
    same = classifier_labels(model, random_images(labels=labels))  # class names missing
    assert same is labels
    assert classifier_labels(model, random_images(labels=labels + 1)) is None
    model.hf.config.id2label = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert classifier_labels(model, random_images(labels=labels, names=("a", "b", "c"))) is labels
    assert classifier_labels(model, random_images(labels=labels, names=("a", "b", "c", "d"))) is None


def test_backbone_with_labels_gets_probes() -> None:
    """Images of two constant colours are told apart by both probes, and pruned heads change their accuracy."""
    model = tiny("backbone")
    labels = torch.arange(24) % 2
    images = random_images(24, labels=labels, names=("dark", "light"))
    images.pixels.copy_(0.3 * images.pixels + 2.0 * (labels[:, None, None, None] * 2 - 1))
    readout = make_readout(model, images)
    assert readout.metrics == ("cls_distance", "knn_drop", "probe_drop")
    with torch.no_grad():
        state = model(images.pixels)
    right = readout.correct((state, state), torch.arange(24))
    assert right["knn_accuracy"].float().mean() > 0.9
    assert right["probe_accuracy"].float().mean() > 0.9
    result = vit(model, images, VitConfig(measure=("importance",), n_bootstrap=20))
    assert set(result.importance[0].per_image) == {"cls_distance", "knn_drop", "probe_drop"}
    assert result.summary()["metric"] == "cls_distance"
    assert "strength" not in result.tables()


def test_counts_that_do_not_vary_have_a_width() -> None:
    for metric, value in (("accuracy_drop", 0.0), ("knn_drop", 0.0), ("accuracy", 1.0), ("probe_accuracy", 0.0)):
        mean, low, high = metric_mean(metric, np.full((40, 2), value), seed=0, n_samples=50)
        np.testing.assert_array_equal(mean, value)
        assert (high - low > 0.05).all()


def test_tables_by_class_average_to_the_whole() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 3])
    result = vit(tiny("vit"), random_images(labels=labels), VitConfig(n_bootstrap=20))
    tables = result.tables()
    whole = tables["importance"].to_pandas()
    by_class = tables["importance_by_class"].to_pandas()
    assert set(by_class["class_name"]) == {"0", "1", "3"}
    assert by_class["low"].isna().all()  # classes of one to three images have no interval, not one of width 0
    assert whole["high"].isna().all()
    by_class["sum"] = by_class["value"] * by_class["n_images"]
    keys = ["layer", "head", "ablation", "metric"]
    mean = by_class.groupby(keys)["sum"].sum() / 6
    np.testing.assert_allclose(whole.set_index(keys)["value"].sort_index(), mean.sort_index(), atol=1e-6)
    strength, split = tables["strength"].to_pandas(), tables["strength_by_class"].to_pandas()
    split["sum"] = split["entropy"] * split["n_images"]
    mean = split.groupby(["layer", "head"])["sum"].sum() / 6
    np.testing.assert_allclose(strength.set_index(["layer", "head"])["entropy"], mean, atol=1e-6)


def test_trend_equals_polyfit() -> None:
    result = vit(tiny("vit"), random_images(n=8), VitConfig(measure=("strength",), n_bootstrap=50))
    assert result.strength is not None
    for entry in result.trend():
        slope = np.polyfit([0, 1], result.strength.mean(entry.measure).mean(-1), 1)[0]
        assert entry.slope == pytest.approx(slope, abs=1e-5)
        assert entry.low - 1e-9 <= entry.slope <= entry.high + 1e-9


def test_agreement_equals_scipy() -> None:
    from scipy.stats import spearmanr

    result = vit(tiny("vit"), random_images(labels=torch.arange(6) % 5), VitConfig(measure=("importance",)))
    mean, zero = result.importance
    pair = next(a for a in result.agreement() if (a.first, a.second) == ("mean_per_position:js", "zero:cls_distance"))
    wanted = spearmanr(mean.per_image["js"].mean(0).ravel(), zero.per_image["cls_distance"].mean(0).ravel()).statistic
    assert pair.spearman == pytest.approx(wanted)
    assert np.isnan(pair.low)  # six images: no interval
    assert pair.n_heads == 8
