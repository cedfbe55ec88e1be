"""Pixels against transformers' own processors (PIL backend), and images of every kind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from attlas.data.images.processor import ImageSpec, eight_bit, to_array, to_pixels
from attlas.errors import CheckpointError, ImageDataError

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 24}, **HALF}
BIT = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 36},
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
    "resample": 3,
    **IMAGENET,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "vit, old style": {"feature_extractor_type": "ViTFeatureExtractor", "size": 30, "resample": 2, **HALF},
    "vit, fast": {**VIT, "image_processor_type": "ViTImageProcessorFast", "crop_size": None, "device": None},
    "no normalise": {**VIT, "do_normalize": False},
    "no rescale": {**VIT, "do_rescale": False},
    "neither": {**VIT, "do_rescale": False, "do_normalize": False},
    "rescale 1/127.5": {**VIT, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    "nearest": {**VIT, "resample": 0},
    "lanczos": {**VIT, "resample": 1},
    "box": {**VIT, "resample": 4},
    "convert": {**VIT, "do_convert_rgb": True},
    "shortest edge": {**VIT, "size": {"shortest_edge": 20}},
    "no resize": {**VIT, "do_resize": False},
    "crop alone": {**BIT, "do_resize": False},
    "crop beyond the edges": {**BIT, "crop_size": {"height": 48, "width": 20}},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": 40, "crop_size": 32, "resample": 3, **IMAGENET},
    "dinov2": BIT,
    "dinov2, no crop": {**BIT, "do_center_crop": False, "size": {"height": 28, "width": 28}},
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32, "resample": 3, **IMAGENET},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, **HALF},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.8},
    "convnext, large": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, **IMAGENET},
    "blip": {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}},
    "beit": {"image_processor_type": "BeitImageProcessor", "size": 36, "crop_size": 32, "do_center_crop": True, **HALF},
}


def picture(height: int = 50, width: int = 90) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 60, (height, width))
    planes = [x / width * 255, y / height * 255, (7 * x + 11 * y) % 196 + noise]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def save(folder: Path, config: dict[str, Any], model: dict[str, Any] | None = None) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    if model is not None:
        (folder / "config.json").write_text(json.dumps(model))
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_the_processors(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path, CONFIGS[name])
    spec = ImageSpec.from_folder(folder)
    reference = AutoImageProcessor.from_pretrained(str(folder), backend="pil")
    for image in (picture(), picture(90, 50), picture(33, 33)):
        wanted = reference(image, return_tensors="pt")["pixel_values"][0]
        found = to_pixels(image, spec)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 1e-3 * max(1.0, float(wanted.abs().max()))
        assert spec.size in (None, tuple(found.shape[-2:]))
        assert to_array(image, spec).shape[:2] == tuple(found.shape[-2:])  # the thumbnail is the crop


@pytest.mark.parametrize("normalise", [True, False])
def test_grey_models(normalise: bool, tmp_path: Path) -> None:
    config = {**VIT, "image_mean": [0.3], "image_std": [0.2], "do_normalize": normalise}
    spec = ImageSpec.from_folder(save(tmp_path, config, {"model_type": "vit", "num_channels": 1}))
    assert spec.n_channels == 1
    grey = picture().convert("L")
    wanted = AutoImageProcessor.from_pretrained(str(tmp_path), backend="pil")(grey, return_tensors="pt")["pixel_values"]
    assert (to_pixels(picture(), spec) - wanted[0]).abs().max() < 1e-3


def test_a_type_comes_from_the_model_where_the_processor_has_none(tmp_path: Path) -> None:
    spec = ImageSpec.from_folder(save(tmp_path, {"size": {"height": 12, "width": 20}}, {"model_type": "ijepa"}))
    assert (spec.size, type(spec.processor).__name__) == ((12, 20), "ViTImageProcessorPil")


def test_another_size(tmp_path: Path) -> None:
    spec = ImageSpec.from_folder(save(tmp_path, BIT))
    small = spec.resized((20, 12))
    assert (spec.size, small.size) == ((28, 28), (20, 12))
    changed = {**BIT, "size": {"height": 20, "width": 12}, "do_center_crop": False}
    wanted = AutoImageProcessor.from_pretrained(str(save(tmp_path, changed)), backend="pil")(picture())["pixel_values"]
    assert np.abs(to_pixels(picture(), small).numpy() - wanted[0]).max() < 1e-3


def test_no_type_anywhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="names no image_processor_type, and a dinov2_with_registers has none"):
        ImageSpec.from_folder(save(tmp_path, {"size": 16}, {"model_type": "dinov2_with_registers"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sharpen": 3}, "knows no 'sharpen'"),
        ({"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}, "does more than resize"),
        ({"image_processor_type": "NoSuchProcessor"}, "NoSuchProcessor cannot be opened"),
        ({"image_mean": [0.5, 0.5]}, "one value a channel"),
        ({"image_std": [0.5, 0.5, 0.0]}, "one value a channel"),
        ({"size": {"depth": 3}}, "preprocessor_config.json'"),
        ({"resample": 77}, "gives no pixels"),
        ({"do_pad": True, "pad_size": {"height": 200, "width": 200}}, "does more than resize"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        ImageSpec.from_folder(save(tmp_path, {**VIT, **change}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "\x00"])
def test_a_damaged_config_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError):
        ImageSpec.from_folder(tmp_path)


RAMP = np.tile(np.linspace(0, 1, 40), (40, 1))


@pytest.mark.parametrize(
    ("array", "suffix"),
    [
        ((RAMP * 65_535).astype(np.uint16), "png"),
        ((RAMP * 65_535).astype(np.uint16), "tiff"),
        ((RAMP * 65_535).astype(np.int32), "tiff"),
        ((RAMP * 255).astype(np.int32), "tiff"),
        (RAMP.astype(np.float32), "tiff"),
        ((RAMP * 255).astype(np.float32), "tiff"),
    ],
)
def test_deep_images_keep_their_brightness(array: np.ndarray, suffix: str, tmp_path: Path) -> None:
    spec = ImageSpec.from_folder(save(tmp_path, {**VIT, "do_resize": False}))
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(array).save(path)
    expected = np.rint(RAMP * 255)
    assert np.abs(to_array(path, spec).astype(int) - expected[..., None]).max() <= 1
    with io.BytesIO() as buffer:
        Image.fromarray(array).save(buffer, "PNG" if suffix == "png" else "TIFF")
        assert np.array_equal(to_array(buffer.getvalue(), spec), to_array(path, spec))


def test_brightness_of_arrays() -> None:
    assert eight_bit(np.array([[False, True]])).tolist() == [[0, 255]]
    assert eight_bit(np.array([0, 65_535], np.uint16)).tolist() == [0, 255]
    assert eight_bit(np.array([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
    assert eight_bit(np.array([0, 7, 255])).tolist() == [0, 7, 255]
    for bad in ([-1.0, 1.0], [np.nan, 1.0], [0.0, 1e6]):
        with pytest.raises(ImageDataError, match="no brightness"):
            eight_bit(np.array(bad))


def test_transparent_becomes_white_and_turned_upright(tmp_path: Path) -> None:
    spec = ImageSpec.from_folder(save(tmp_path, {**VIT, "do_resize": False}))
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (to_array(clear, spec) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(10, 30).save(tmp_path / "turned.png", exif=exif)
    assert to_array(tmp_path / "turned.png", spec).shape == (30, 10, 3)


def test_no_torchvision() -> None:
    import sys

    assert "torchvision" not in sys.modules
    assert torch.__version__
