"""Images and their classes as they lie on disk: folders, .npz files, sample pictures."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attlas.data.images.processor import eight_bit
from attlas.errors import ImageDataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}

Found = tuple[Any, np.ndarray | None, tuple[str, ...] | None]
"""(images by number: paths or arrays, labels int64 [n] or None, class names or None)"""


def read_folder(path: Path) -> Found:
    """Pictures of a folder in the order of their names; the folder a picture lies in is its class.

    Hidden files (macOS's `._x.png` too) are passed over. A class is named by its folder, or by the path below `path`
    where two folders have one name. Pictures outside any class are left out with a warning, unless they are the
    larger part: then nothing has a label.

    Raises:
        ImageDataError: no such folder, no pictures, or splits (train, val …) that hold the same classes.
    """
    if not path.exists():
        raise ImageDataError(f"'{path}' does not exist; give a folder, an .npz, embedded:glyphs or sklearn:samples")
    if path.is_file():
        return [path], None, None
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not _hidden(p, path) and p.is_file())
    if not files:
        raise ImageDataError(f"folder '{path}' holds no images ({', '.join(sorted(SUFFIXES))})")
    inside = [p for p in files if p.parent != path]
    stray = [p for p in files if p.parent == path]
    if not inside:
        return files, None, None
    if stray:
        less, what = (stray, "are left out") if len(stray) <= len(inside) else (files, "are read without labels")
        warnings.warn(
            f"{len(stray)} pictures ({shorten(p.name for p in stray)}) of '{path}' lie in no class, {len(inside)} in "
            f"folders; {'they' if less is stray else 'all'} {what}",
            stacklevel=2,
        )
        if less is files:
            return files, None, None
    folders = sorted({p.parent.relative_to(path) for p in inside})
    _refuse_splits(path, folders)
    twice = Counter(folder.name for folder in folders)
    names = [f.name if twice[f.name] == 1 else f.as_posix() for f in folders]
    order = sorted(range(len(folders)), key=lambda i: names[i])
    place = {folders[i]: label for label, i in enumerate(order)}
    labels = np.array([place[p.parent.relative_to(path)] for p in inside], dtype=np.int64)
    return inside, labels, tuple(names[i] for i in order)


def _hidden(file: Path, top: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(top).parts)


def _refuse_splits(path: Path, folders: Sequence[Path]) -> None:
    """train/cat and val/cat are one class in two splits: say so, rather than make two classes or one of them."""
    tops = sorted({f.parts[0] for f in folders if len(f.parts) > 1})
    below = {top: {f.parts[1:] for f in folders if f.parts[0] == top} for top in tops}
    splits = [top for top in tops if top.lower() in _SPLITS]
    if len(splits) > 1 and any(below[a] & below[b] for a in splits for b in splits if a != b):
        raise ImageDataError(f"'{path}' holds the splits {', '.join(splits)}; give one, such as '{path / splits[0]}'")


def read_npz(path: Path) -> Found:
    """`images` [n, H, W] or [n, H, W, C] and optionally `labels` int [n] and `classes`.

    Raises:
        ImageDataError: missing, unreadable, or of shapes that do not fit.
    """
    if not path.is_file():
        raise ImageDataError(f"'{path}' does not exist")
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in ("images", "labels", "classes") if name in data}
            names = sorted(data.files)
    except Exception as error:  # a damaged archive raises many things, zlib.error and BadZipFile among them
        raise ImageDataError(f"'{path}' cannot be read as .npz ({error})") from error
    if "images" not in arrays:
        raise ImageDataError(f"'{path}' has no array 'images', only {names}")
    images, labels = arrays["images"], arrays.get("labels")
    classes = tuple(str(c) for c in arrays["classes"]) if "classes" in arrays else None
    if images.ndim not in (3, 4) or not len(images) or (images.ndim == 4 and images.shape[-1] not in (1, 3, 4)):
        raise ImageDataError(f"'{path}': images of shape {images.shape}; [n, H, W] or [n, H, W, 1, 3 or 4] is needed")
    if labels is not None:
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ImageDataError(
                f"'{path}': labels {labels.dtype} {labels.shape} for {len(images)} images; give one integer an image"
            )
        if labels.min() < 0 or (classes is not None and labels.max() >= len(classes)):
            raise ImageDataError(
                f"'{path}': labels {labels.min()}–{labels.max()} do not fit {len(classes or ())} classes"
            )
        labels = labels.astype(np.int64)
    images = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
    return eight_bit(images), labels, classes


def sample_tiles(tile: int = 213) -> list[np.ndarray]:
    """Square tiles of scikit-learn's and, where installed, scikit-image's sample pictures, left to right."""
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


def shorten(names: Any, n: int = 3) -> str:
    """The first names of many, for a message."""
    names = list(names)
    return ", ".join(names[:n]) + (", …" if len(names) > n else "")
