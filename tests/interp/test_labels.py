"""Labels of an image folder, as every consumer takes them, against the Hugging Face model itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from attlas.analyses.attention.windows import WindowConfig, window_loss
from attlas.analyses.common.losses import quality
from attlas.analyses.features.describe import FeaturesConfig, features
from attlas.analyses.features.logits import logit_effects
from attlas.analyses.pruning.healing import HealConfig, heal
from attlas.analyses.pruning.side_effects.report import SideEffectsConfig, drop_side_effects
from attlas.analyses.redundancy.heads import HeadEffectsConfig, head_effects
from attlas.analyses.redundancy.modules import module_effects
from attlas.analyses.redundancy.scores import RedundancyConfig
from attlas.analyses.vit.readout import make_readout
from attlas.data.images.dataset import ImageDataset, load_images
from attlas.data.images.labels import match_classes
from attlas.errors import AttlasError, ConfigError
from attlas.interp import HookedModel, load_model
from attlas.interp.drop import Drop
from attlas.interp.labels import classifier_labels, loss_labels
from attlas.saes import SAEConfig, evaluate
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE
from attlas.saes.evaluation.measure import EvalConfig

NAMES = ("zebra", "Apple", "mouse, house mouse", "cup", "bear")  # far from alphabetical


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, and a folder of pictures beside it."""
    torch.manual_seed(2)
    top = tmp_path_factory.mktemp("labels")
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(NAMES)),
    )
    model = ViTForImageClassification(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    model.save_pretrained(top / "model")
    size = '{"height": 16, "width": 16}'
    (top / "model" / "preprocessor_config.json").write_text(
        f'{{"image_processor_type": "ViTImageProcessor", "size": {size}}}'
    )
    noise = np.random.default_rng(0)
    for name in ("apple", "bear", "cup", "house_mouse"):  # "zebra" has no pictures
        (top / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(top / "pictures" / name / f"{i}.png")
    return top


@pytest.fixture(scope="module")
def model(folder: Path) -> HookedModel:
    return load_model(folder / "model", device="cpu")


@pytest.fixture(scope="module")
def data(folder: Path, model: HookedModel) -> ImageDataset:
    return load_images(folder / "pictures", model.image_spec)


def random_sae(d_sae: int = 8) -> SAE:
    sae = create_sae(SAEConfig(d_in=16, d_sae=d_sae, k=2, hook_name="blocks.1.attn.hook_z")).requires_grad_(False)
    for parameter in sae.parameters():
        parameter.data.normal_(0, 0.3)
    return sae


@pytest.fixture(scope="module")
def truth(folder: Path) -> tuple[float, float]:
    """(loss, accuracy) by transformers alone."""
    hf = AutoModelForImageClassification.from_pretrained(folder / "model").eval()
    processor = AutoImageProcessor.from_pretrained(str(folder / "model"), backend="pil")
    number = {"apple": 1, "house_mouse": 2, "cup": 3, "bear": 4}
    files = sorted((folder / "pictures").rglob("*.png"))
    pixels = processor([Image.open(f) for f in files], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([number[f.parent.name] for f in files])
    with torch.no_grad():
        output = hf(pixel_values=pixels, labels=labels)
    return float(output.loss), float((output.logits.argmax(-1) == labels).float().mean())


def test_labels_are_the_classifiers(model: HookedModel, data: ImageDataset) -> None:
    assert data.class_names == NAMES
    assert torch.equal(classifier_labels(model, data), data.labels)  # type: ignore[arg-type]
    assert torch.equal(loss_labels(model, data), data.labels)  # type: ignore[arg-type]
    mixed = dataclasses.replace(data, labels=torch.tensor([0, 1] * 8), class_names=("bear", "apple"))
    assert classifier_labels(model, mixed).tolist() == [4, 1] * 8  # type: ignore[union-attr]


def test_losses_and_accuracies_are_transformers_own(
    folder: Path, model: HookedModel, data: ImageDataset, truth: tuple[float, float]
) -> None:
    loss, accuracy = truth
    found = quality(model, data)
    assert found[:2] == pytest.approx((loss, accuracy), abs=1e-5)
    assert window_loss(model, data, WindowConfig(windows=(2,))).base_loss == pytest.approx(loss, abs=1e-5)
    healed = heal(
        AutoModelForImageClassification.from_pretrained(folder / "model").eval(),
        model,
        data,
        data,
        HealConfig(1, 1e-6, 4, objective="ce"),
    )
    assert healed.eval_losses[0][1] == pytest.approx(loss, abs=1e-5)
    sae = random_sae()
    config = EvalConfig(controls=())
    assert evaluate(sae, model, data, config).value("accuracy_clean") == pytest.approx(accuracy, abs=1e-6)
    readout = make_readout(model, data)
    assert readout.knn is None
    assert torch.equal(readout.labels, data.labels)  # type: ignore[arg-type]


def test_effects_and_names(model: HookedModel, data: ImageDataset, truth: tuple[float, float]) -> None:
    """Effects of what a folder in its own numbering is, and of one whose labels are given by hand."""
    by_hand = dataclasses.replace(data, class_names=None)
    own = dataclasses.replace(
        data,
        labels=torch.tensor([0, 3, 1, 2, 4])[data.labels],
        class_names=("zebra", "house mouse", "cup", "apple", "bear"),
    )
    config = HeadEffectsConfig(ablations=("zero",), n_bootstrap=2)
    few = RedundancyConfig(n_bootstrap=2)
    for images in (by_hand, own):
        assert np.allclose(
            head_effects(model, images, config).mean("zero"), head_effects(model, data, config).mean("zero")
        )
        assert np.allclose(module_effects(model, images, few).delta, module_effects(model, data, few).delta)
        assert quality(model, images)[0] == pytest.approx(truth[0], abs=1e-5)
    sae = random_sae()
    ids = logit_effects(model, sae.W_dec, sae.cfg.hook_name, 5)[1]
    rows = features(model, sae, own, FeaturesConfig(n_top=2)).tables()["logits"].to_pylist()
    assert rows
    assert all(r["token"] in NAMES for r in rows)
    first = [r["token"] for r in rows if r["feature"] == rows[0]["feature"]][:5]
    assert first == [NAMES[i] for i in ids[rows[0]["feature"]].tolist()]
    tallies = [
        drop_side_effects(
            model, Drop(attn=(0,)), images, {sae.cfg.hook_name: sae}, SideEffectsConfig(batch_size=8)
        ).tallies
        for images in (data, own)
    ]
    assert str(tallies[0]) == str(tallies[1])


def test_classes_the_classifier_does_not_know_are_refused_by_name(model: HookedModel, data: ImageDataset) -> None:
    strange = dataclasses.replace(data, class_names=("zebra", "Apple", "kettle", "cup", "teapot"))
    config = HeadEffectsConfig(ablations=("zero",), n_bootstrap=2)
    for run in (
        lambda: quality(model, strange),
        lambda: head_effects(model, strange, config),
        lambda: module_effects(model, strange),
        lambda: window_loss(model, strange),
        lambda: heal(model.hf, model, strange, strange, HealConfig(1, 1e-6, 4)),
    ):
        with pytest.raises(AttlasError, match="'kettle', 'teapot' are not known to the classifier of model"):
            run()
    sae = random_sae()
    with pytest.warns(UserWarning, match="'kettle', 'teapot' are not known.*labels are not used"):
        found = evaluate(sae, model, strange, EvalConfig(controls=()))
    assert "accuracy_clean" not in {row["metric"] for row in found.rows}
    beyond = dataclasses.replace(data, labels=data.labels + 9, class_names=None)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="label 13 of the images is beyond"):
        loss_labels(model, beyond)


def test_matching_of_names() -> None:
    known = ("a", "A", "great_white shark", "tench, Tinca tinca", "crane", "crane, bird")
    assert match_classes(["a", "A"], known) == [0, 1]
    assert match_classes(["Great White Shark", "tinca tinca"], known) == [2, 3]
    assert match_classes(["crane"], known) == [4]
    assert match_classes(["CRANE"], known) == [4]
    assert match_classes(["bird", "nothing"], known) == [5, None]
    assert match_classes(["a", "A"], ("a", "b")) == [0, None]  # one class for two of the folder's: only the equal one
    assert match_classes(["B", "b "], ("b",)) == [None, None]
