"""Images in, normalised pixels out, without torchvision."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from attlas.data.workspace import Ref
from attlas.errors import CheckpointError, ImageDataError

GLYPHS = Path(__file__).resolve().parent / "models" / "vit-mini" / "glyphs-test.npz"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class ImageSpec:
    """How a model wants its images.

    Attributes:
        size: (height, width) in pixels.
        mean, std: per channel, of pixels scaled to [0, 1]; one value means a grey image.
        resample: PIL's number of the filter (2 bilinear, 3 bicubic).
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = 2

    @property
    def n_channels(self) -> int:
        return len(self.mean)

    @classmethod
    def from_folder(cls, folder: Path) -> ImageSpec:
        """Read preprocessor_config.json (of any image processor with size, image_mean and image_std).

        Raises:
            CheckpointError: the file is not there or not JSON.
        """
        path = Path(folder) / "preprocessor_config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise CheckpointError(f"cannot read '{path}': {error}") from error
        size = config.get("crop_size") if config.get("do_center_crop") else None
        size = size or config.get("size") or 224
        if isinstance(size, int):
            height = width = size
        else:
            height = size.get("height") or size.get("shortest_edge")
            width = size.get("width") or height
        return cls(
            size=(int(height), int(width)),
            mean=tuple(config.get("image_mean", (0.5, 0.5, 0.5))),
            std=tuple(config.get("image_std", (0.5, 0.5, 0.5))),
            resample=int(config.get("resample", 2)),
        )

    def normalise(self, images: np.ndarray) -> Tensor:
        """uint8 [n, H, W, C] → float32 [n, C, H, W]."""
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        mean, std = torch.tensor(self.mean).view(1, -1, 1, 1), torch.tensor(self.std).view(1, -1, 1, 1)
        return (x - mean) / std


@dataclass(frozen=True)
class ImageDataset:
    """Images ready for a model.

    Attributes:
        pixels: float32 [n, C, H, W], normalised.
        thumbnails: uint8 [n, H, W, 3], for showing.
        labels: int64 [n], or None.
        class_names: name of each label, or None.
        name, hash: where they came from, and 16 hex digits over the pixels.
    """

    pixels: Tensor
    thumbnails: np.ndarray
    labels: Tensor | None
    class_names: tuple[str, ...] | None
    name: str
    hash: str

    @property
    def ref(self) -> Ref:
        return Ref(self.name, self.hash)

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def batches(self, batch_size: int) -> Sequence[Tensor]:
        """Pixels [≤ batch_size, C, H, W] each, in order."""
        return self.pixels.split(batch_size)

    def take(self, n: int) -> ImageDataset:
        """The first images."""
        labels = self.labels[:n] if self.labels is not None else None
        return ImageDataset(
            self.pixels[:n], self.thumbnails[:n], labels, self.class_names, self.name, f"{self.hash[:12]}{n:x}"[:16]
        )


def to_array(image: bytes | Image.Image | np.ndarray | Path, spec: ImageSpec) -> np.ndarray:
    """Any image as uint8 [H, W, C] of the model's size and channels; transparent parts become white.

    Raises:
        ImageDataError: not an image, corrupt, or of more than 100 million pixels.
    """
    try:
        if isinstance(image, np.ndarray):
            opened = Image.fromarray(image)
        elif isinstance(image, Image.Image):
            opened = image
        else:
            opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        if opened.width * opened.height > MAX_PIXELS:
            raise ImageDataError(f"an image of {opened.width} × {opened.height} pixels is too large; shrink it first")
        opened.draft("RGB", (4 * spec.size[1], 4 * spec.size[0]))  # JPEG only: decode large ones at reduced size
        opened = ImageOps.exif_transpose(opened)
        if opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info:
            rgba = opened.convert("RGBA")
            opened = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        opened = opened.convert("L" if spec.n_channels == 1 else "RGB")
        opened = opened.resize((spec.size[1], spec.size[0]), Image.Resampling(spec.resample))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError) as error:
        if isinstance(error, ImageDataError):
            raise
        what = image if isinstance(image, Path) else "this upload"
        raise ImageDataError(
            f"'{what}' is not an image that can be read ({type(error).__name__}); use PNG or JPEG"
        ) from error
    array = np.array(opened, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array


def to_pixels(image: bytes | Image.Image | np.ndarray | Path, spec: ImageSpec) -> Tensor:
    """Any image as float32 [C, H, W], normalised for a model; raises as to_array does."""
    return spec.normalise(to_array(image, spec)[None])[0]


def load_images(
    source: str | Path, spec: ImageSpec | None, *, n_images: int | None = None, seed: int = 0
) -> ImageDataset:
    """Read images for a model.

    Args:
        source: "embedded:glyphs" (rendered characters with labels), "sklearn:samples" (scikit-learn's and, where
            installed, scikit-image's sample pictures, cut into square tiles), a folder (subfolders are classes), or
            an .npz with `images` uint8 [n, H, W] or [n, H, W, 3] and optionally `labels`, `classes`.
        spec: the model's; None raises.
        n_images: how many, drawn without replacement by the seed; None takes all in order.

    Raises:
        ImageDataError: missing, empty or unreadable.
    """
    if spec is None:
        raise ImageDataError(
            "the model has no preprocessor_config.json, so how it wants its images is not known; add one"
        )
    labels: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    if str(source) == "embedded:glyphs":
        images, labels, names = _npz(GLYPHS)
    elif str(source) == "sklearn:samples":
        images = _samples()
    elif Path(source).suffix == ".npz":
        images, labels, names = _npz(Path(source))
    else:
        images, labels, names = _folder(Path(source).expanduser())
    chosen = np.arange(len(images))
    if n_images is not None and n_images < len(images):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:n_images])
    arrays = np.stack([to_array(images[i], spec) for i in chosen])
    digest = hashlib.sha256(str(arrays.shape).encode() + arrays.tobytes()).hexdigest()[:16]
    shown = arrays if arrays.shape[-1] == 3 else np.repeat(arrays, 3, axis=-1)
    picked = torch.from_numpy(labels[chosen].astype(np.int64)) if labels is not None else None
    return ImageDataset(spec.normalise(arrays), shown, picked, names, str(source), digest)


def shrink(thumbnails: np.ndarray, longest: int = 64) -> np.ndarray:
    """uint8 [m, h, w, 3] averaged down to at most `longest` pixels a side."""
    step = -(-max(thumbnails.shape[1:3]) // longest)
    if step <= 1 or not len(thumbnails):
        return thumbnails
    m, h, w, c = thumbnails.shape
    cut = thumbnails[:, : h // step * step, : w // step * step]
    means: np.ndarray = cut.reshape(m, h // step, step, w // step, step, c).mean((2, 4)).astype(np.uint8)
    return means


def _npz(path: Path) -> tuple[Any, np.ndarray | None, tuple[str, ...] | None]:
    if not path.is_file():
        raise ImageDataError(f"'{path}' does not exist")
    try:
        with np.load(path, allow_pickle=False) as data:
            if "images" not in data:
                raise ImageDataError(f"'{path}' has no array 'images', only {sorted(data.files)}")
            classes = tuple(str(c) for c in data["classes"]) if "classes" in data else None
            return data["images"], data["labels"] if "labels" in data else None, classes
    except (ValueError, OSError) as error:
        if isinstance(error, ImageDataError):
            raise
        raise ImageDataError(f"'{path}' cannot be read as .npz ({error})") from error


def _folder(path: Path) -> tuple[list[Path], np.ndarray | None, tuple[str, ...] | None]:
    if not path.exists():
        raise ImageDataError(f"'{path}' does not exist; give a folder, an .npz, embedded:glyphs or sklearn:samples")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise ImageDataError(f"folder '{path}' holds no images ({', '.join(sorted(_SUFFIXES))})")
    classes = sorted({p.parent.name for p in files if p.parent != path}) if path.is_dir() else []
    if not classes or any(p.parent == path for p in files):
        return files, None, None
    return files, np.array([classes.index(p.parent.name) for p in files]), tuple(classes)


def _samples(tile: int = 213) -> list[np.ndarray]:
    """Square tiles of the sample pictures, left to right."""
    from sklearn.datasets import load_sample_images

    pictures = [np.asarray(image) for image in load_sample_images().images]
    try:
        from skimage import data as skimage_data

        for name in ("astronaut", "coffee", "chelsea", "rocket"):
            pictures.append(np.asarray(getattr(skimage_data, name)()))
    except Exception:  # scikit-image is optional, and some of its pictures need a download
        pass
    tiles = []
    for picture in pictures:
        for top in range(0, picture.shape[0] - tile + 1, tile):
            for left in range(0, picture.shape[1] - tile + 1, tile):
                tiles.append(picture[top : top + tile, left : left + tile])
    return tiles
