"""What an analysis needs of a model, asked for in one place."""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.data.images.dataset import ImageDataset
from attlas.errors import ConfigError, ImageDataError
from attlas.interp import HookedModel


def require_vit(model: HookedModel, images: ImageDataset) -> None:
    """Refuse language models, empty image sets and images of a shape the model does not take.

    Raises:
        UnsupportedModelError, ConfigError.
    """
    model.require_vision_model()
    if not len(images):
        raise ConfigError("there are no images; give at least one")
    height, width = images.pixels.shape[-2:]
    if (height, width) == model.cfg.image_size:
        return
    if height % model.cfg.patch_size or width % model.cfg.patch_size:
        raise ConfigError(f"images of {height} × {width} px are no whole number of {model.cfg.patch_size} px patches")
    try:
        with torch.no_grad():
            model(images.pixels[:1])
    except ValueError as error:
        raise ConfigError(
            f"{model.name} takes images of {model.cfg.image_size} px only, not {(height, width)}: {error}"
        ) from error


def patch_grid(model: HookedModel, pixels: Tensor) -> tuple[int, int]:
    """Patches as (rows, columns) of images [..., height, width], which may be of another size than the model's own.

    Raises:
        ImageDataError: the pixels are smaller than a patch.
    """
    height, width = pixels.shape[-2:]
    rows, columns = height // model.cfg.patch_size, width // model.cfg.patch_size
    if rows * columns < 1:
        raise ImageDataError(f"images of {height} × {width} pixels hold no patch of {model.cfg.patch_size}")
    return rows, columns
