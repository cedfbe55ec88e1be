"""Images in, normalised pixels out, without torchvision."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from attlas.data.dataset import Dataset, content_hash
from attlas.data.images.files import Found, read_folder, read_npz, sample_tiles, shorten
from attlas.data.images.labels import match_classes
from attlas.data.images.processor import ImageSpec, to_array
from attlas.data.splits import stratified_order
from attlas.errors import AttlasError, ImageDataError

GLYPHS = Path(__file__).resolve().parents[1] / "models" / "vit-mini" / "glyphs-test.npz"


@dataclass(frozen=True)
class ImageDataset(Dataset):
    """Images ready for a model.

    Attributes:
        pixels: float32 [n, C, H, W], normalised.
        thumbnails: uint8 [n, H, W, 3], what the model sees, for showing.
        labels: int64 [n], or None.
        class_names: name of each label, or None. Labels are in a model's numbering where these are its classifier's
            names; `attlas.interp.labels` asks.
        name, hash: where they came from, and 16 hex digits over what the model sees, labels and names.
    """

    pixels: Tensor
    thumbnails: np.ndarray
    labels: Tensor | None
    class_names: tuple[str, ...] | None
    name: str
    hash: str

    _THINGS: ClassVar[str] = "images"
    _ERROR: ClassVar[type[AttlasError]] = ImageDataError

    @property
    def tensor(self) -> Tensor:
        return self.pixels

    @property
    def mask(self) -> None:
        """None: every position of an image counts."""
        return

    def _part(self, rows: Tensor) -> ImageDataset:
        shown = self.thumbnails[rows.numpy()]
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(
            self,
            pixels=self.pixels[rows],
            thumbnails=shown,
            labels=labels,
            hash=content_hash(shown, labels, self.class_names),
        )


def default_images(spec: ImageSpec | None) -> str:
    """The image source that suits a vision model where none is named: glyphs for one channel, else sample pictures.

    Example:
        >>> from attlas.data.images import default_images
        >>> default_images(vit_model.image_spec)
        'embedded:glyphs'
    """
    return "embedded:glyphs" if spec is not None and spec.n_channels == 1 else "sklearn:samples"


def load_images(
    source: str | Path, spec: ImageSpec | None, *, n_images: int | None = None, seed: int = 0
) -> ImageDataset:
    """Read images for a model.

    Args:
        source: "embedded:glyphs" (rendered characters with labels), "sklearn:samples" (scikit-learn's and, where
            installed, scikit-image's sample pictures, cut into square tiles), a folder (subfolders are classes), or
            an .npz with `images` [n, H, W] or [n, H, W, 3] and optionally `labels`, `classes`.
        spec: the model's; None raises. Where it knows its classifier's names and they hold all of the source's,
            labels are given in the classifier's numbering.
        n_images: how many, drawn without replacement; None takes all.
        seed: of the order, in which any contiguous piece holds all classes in their shares.

    Files that cannot be read are left out with one warning.

    Raises:
        ImageDataError: missing, empty, or half of the files or more unreadable.

    Example:
        >>> from attlas.data.images import load_images
        >>> load_images("embedded:glyphs", vit_model.image_spec, n_images=8).pixels.shape  # [n, channels, height, width]
        torch.Size([8, 1, 32, 32])
    """
    if spec is None:
        raise ImageDataError(
            "the model has no preprocessor_config.json, so how it wants its images is not known; add one"
        )
    if n_images is not None and n_images < 1:
        raise ImageDataError(f"n_images {n_images} must be 1 or more")
    images, labels, names = _read(str(source))
    order = stratified_order(len(images), labels, seed)
    arrays, chosen = _readable(images, order, spec, n_images or len(images), str(source))
    pictures = np.stack(arrays)
    shown = pictures if pictures.shape[-1] == 3 else np.repeat(pictures, 3, axis=-1)
    picked = None if labels is None else torch.from_numpy(labels[chosen])
    picked, names = _numbered(picked, names, spec.classes)
    return ImageDataset(spec.normalise(pictures), shown, picked, names, str(source), content_hash(shown, picked, names))


def _read(source: str) -> Found:
    if source == "embedded:glyphs":
        return read_npz(GLYPHS)
    if source == "sklearn:samples":
        return sample_tiles(), None, None
    if source.startswith(("embedded:", "sklearn:")):
        raise ImageDataError(f"no images '{source}'; there are embedded:glyphs and sklearn:samples")
    path = Path(source).expanduser()
    return read_npz(path) if path.suffix == ".npz" else read_folder(path)


def _readable(
    images: Any, order: np.ndarray, spec: ImageSpec, wanted: int, source: str
) -> tuple[list[np.ndarray], np.ndarray]:
    """The first `wanted` images of the order that can be read, and their numbers."""
    arrays: list[np.ndarray] = []
    chosen: list[int] = []
    bad: list[str] = []
    reason = ""
    for i in order:
        if len(arrays) == wanted:
            break
        try:
            array = to_array(images[i], spec)
        except ImageDataError as error:
            bad.append(images[i].name if isinstance(images[i], Path) else f"number {i}")
            reason = reason or str(error)
            continue
        if arrays and array.shape != arrays[0].shape:
            sizes = " and ".join(f"{a.shape[0]} × {a.shape[1]}" for a in (arrays[0], array))
            raise ImageDataError(
                f"the model's image processor neither crops nor resizes to one size, so images of '{source}' are "
                f"{sizes} pixels; give images of one shape"
            )
        arrays.append(array)
        chosen.append(int(i))
    if bad and len(images) == 1:
        raise ImageDataError(reason)
    if bad:
        said = f"{len(bad)} of {len(bad) + len(arrays)} images of '{source}' cannot be read ({shorten(sorted(bad))})"
        if len(bad) >= len(arrays):
            raise ImageDataError(f"{said}; the first: {reason}")
        warnings.warn(f"{said} and are left out", stacklevel=3)
    return arrays, np.array(chosen)


def _numbered(
    labels: Tensor | None, names: tuple[str, ...] | None, classes: tuple[str, ...]
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels and names in a classifier's numbering where it has all of the names; else as they are."""
    if labels is None or names is None or not classes:
        return labels, names
    places = match_classes(names, classes)
    known = [place for place in places if place is not None]
    if len(known) < len(places):
        return labels, names
    return torch.tensor(known)[labels], classes


def shrink(thumbnails: np.ndarray, longest: int = 64) -> np.ndarray:
    """uint8 [m, h, w, 3] averaged down to at most `longest` pixels a side.

    Example:
        >>> from attlas.data.images import shrink
        >>> shrink(np.zeros((2, 128, 64, 3), np.uint8)).shape  # [n, height, width, 3]
        (2, 64, 32, 3)
    """
    step = -(-max(thumbnails.shape[1:3]) // longest)
    if step <= 1 or not len(thumbnails):
        return thumbnails
    m, h, w, c = thumbnails.shape
    cut = thumbnails[:, : h // step * step, : w // step * step]
    means: np.ndarray = cut.reshape(m, h // step, step, w // step, step, c).mean((2, 4)).astype(np.uint8)
    return means
