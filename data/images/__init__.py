"""Images in, normalised pixels out, without torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.data.images.dataset import GLYPHS, ImageDataset, default_images, load_images, shrink
    from attlas.data.images.processor import MAX_PIXELS, ImageSpec, to_array, to_pixels

_PUBLIC = {
    "GLYPHS": "dataset",
    "MAX_PIXELS": "processor",
    "ImageDataset": "dataset",
    "ImageSpec": "processor",
    "default_images": "dataset",
    "load_images": "dataset",
    "shrink": "dataset",
    "to_array": "processor",
    "to_pixels": "processor",
}

__all__ = [
    "GLYPHS",
    "MAX_PIXELS",
    "ImageDataset",
    "ImageSpec",
    "default_images",
    "load_images",
    "shrink",
    "to_array",
    "to_pixels",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
