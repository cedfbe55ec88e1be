"""Folders of images: classes, strays, unreadable files, order and splits."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attlas.data.images.dataset import ImageDataset, load_images
from attlas.data.images.processor import ImageSpec
from attlas.data.splits import stratified_order
from attlas.errors import ImageDataError
from attlas.interp import HookedModel


@pytest.fixture(scope="module")
def spec(vit_mini: HookedModel) -> ImageSpec:
    found: ImageSpec = vit_mini.image_spec
    return found


def put(path: Path, shade: int = 99) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path)


def folder(tmp_path: Path, *names: str, n: int = 3) -> Path:
    for k, name in enumerate(names):
        for i in range(n):
            put(tmp_path / name / f"{i}.png", 10 * k + i)
    return tmp_path


def test_labels_are_in_the_classifiers_numbering(tmp_path: Path, spec: ImageSpec) -> None:
    found = load_images(folder(tmp_path, "A", "0", "Z"), spec)
    assert found.class_names == spec.classes
    assert len(spec.classes) == 36
    assert found.labels is not None
    assert {spec.classes[i] for i in found.labels.tolist()} == {"A", "0", "Z"}
    shades = found.thumbnails[:, 0, 0, 0] // 10
    assert [spec.classes[i] for i in found.labels.tolist()] == [("A", "0", "Z")[s] for s in shades]
    other = load_images(folder(tmp_path / "more", "A", "cat"), spec)
    assert other.class_names == ("A", "cat")  # the classifier does not know all: the folder's own


def test_classes_that_differ_in_case_or_path_stay_apart(tmp_path: Path, spec: ImageSpec) -> None:
    names = load_images(folder(tmp_path, "one", "ONE"), spec).class_names
    assert names == ("ONE", "one")
    nested = load_images(folder(tmp_path / "n", "x/a", "y/a", "z/b"), spec)
    assert nested.class_names == ("b", "x/a", "y/a")
    assert Counter(nested.labels.tolist()) == {0: 3, 1: 3, 2: 3}  # type: ignore[union-attr]
    with pytest.raises(ImageDataError, match="holds the splits train, val; give one"):
        load_images(folder(tmp_path / "s", "train/a", "val/a"), spec)


def test_strays_and_hidden_files_are_left_out(tmp_path: Path, spec: ImageSpec) -> None:
    folder(tmp_path, "one", "two")
    put(tmp_path / "stray.png")
    (tmp_path / "one" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    put(tmp_path / "__MACOSX" / "one" / "0.png")
    put(tmp_path / ".cache" / "x.png")
    with pytest.warns(UserWarning, match=r"1 pictures \(stray.png\).*left out"):
        found = load_images(tmp_path, spec)
    assert (len(found), found.class_names) == (6, ("one", "two"))
    for i in range(9):
        put(tmp_path / f"top{i}.png")
    with pytest.warns(UserWarning, match="read without labels"):
        found = load_images(tmp_path, spec)
    assert (len(found), found.labels) == (16, None)


def test_unreadable_files_are_said_at_once(tmp_path: Path, spec: ImageSpec) -> None:
    folder(tmp_path, "one", "two")
    for name in ("one/bad1.png", "two/bad2.jpg"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"2 of 8 images .*\(bad1.png, bad2.jpg\) and are left out"):
        assert len(load_images(tmp_path, spec)) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(load_images(tmp_path, spec, n_images=6)) == 6  # others take their place
    for i in range(6):
        (tmp_path / "one" / f"worse{i}.png").write_bytes(b"")
    with pytest.raises(ImageDataError, match=r"8 of 14 images .* cannot be read \(bad1.png, bad2.jpg, worse0.png, …\)"):
        load_images(tmp_path, spec)
    with pytest.raises(ImageDataError, match=r"bad1.png' is not an image"):
        load_images(tmp_path / "one" / "bad1.png", spec)


def test_images_of_different_sizes_need_one_size(vit_mini: HookedModel, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 8}}'
    )
    loose = ImageSpec.of(AutoImageProcessor.from_pretrained(str(tmp_path), backend="pil"), 3)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 16)).save(tmp_path / "b.png")
    with pytest.raises(ImageDataError, match="give images of one shape"):
        load_images(tmp_path, loose)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "no array 'images'"),
        ({"images": np.zeros((4, 8), np.uint8)}, "shape"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "one integer an image"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(4)}, "one integer an image"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.full(4, 2), "classes": ["a", "b"]}, "do not fit"),
        ({"images": np.full((4, 8, 8), np.nan)}, "no brightness"),
    ],
)
def test_npz_that_does_not_fit(arrays: dict, message: str, tmp_path: Path, spec: ImageSpec) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ImageDataError, match=message):
        load_images(tmp_path / "x.npz", spec)


def test_deep_npz_is_scaled_as_a_whole(tmp_path: Path, spec: ImageSpec) -> None:
    images = np.stack([np.full((8, 8), 1.0), np.full((8, 8), 200.0)])  # the first alone would pass for 0–1
    np.savez(tmp_path / "x.npz", images=images)
    found = load_images(tmp_path / "x.npz", spec)
    assert sorted(found.thumbnails[:, 0, 0, 0].tolist()) == [1, 200]


def test_every_piece_of_the_order_is_stratified() -> None:
    labels = np.repeat(np.arange(7), [10, 20, 30, 40, 50, 60, 5])
    order = stratified_order(len(labels), labels, 3)
    assert sorted(order) == list(range(len(labels)))
    shares = np.bincount(labels) / len(labels)
    for start, stop in ((0, 50), (0, 107), (107, 215), (33, 180)):
        counts = np.bincount(labels[order[start:stop]], minlength=7)
        assert np.abs(counts - shares * (stop - start)).max() < 2
    assert not np.array_equal(order, stratified_order(len(labels), labels, 4))
    assert np.array_equal(order, stratified_order(len(labels), labels, 3))
    assert not np.array_equal(stratified_order(50), np.arange(50))


def test_samples_and_halves_hold_all_classes(tmp_path: Path, spec: ImageSpec) -> None:
    found = load_images(folder(tmp_path, "A", "B", "C", "D", n=8), spec, seed=1)

    def counts(images: ImageDataset) -> list[int]:
        assert images.labels is not None
        return sorted(Counter(images.labels.tolist()).values())

    assert counts(found.take(8)) == [2, 2, 2, 2]
    first, second = found.split(0.5, seed=5)
    assert counts(first) == counts(second) == [4, 4, 4, 4]
    together = np.concatenate([p.thumbnails[:, 0, 0, 0] for p in (first, second)])
    assert sorted(together) == sorted(found.thumbnails[:, 0, 0, 0])  # disjoint, and all of it
    assert len({found.hash, first.hash, second.hash, found.take(8).hash}) == 4
    few = load_images(tmp_path, spec, n_images=4, seed=1)
    assert counts(few) == [1, 1, 1, 1]
    with pytest.raises(ImageDataError, match="n_images 0 must be 1 or more"):
        load_images(tmp_path, spec, n_images=0)
    with pytest.raises(ImageDataError, match="cannot be split"):
        few.take(1).split(0.5)
