"""ViT-MAE: the encoder of a masked autoencoder, a ViT that is given whole images here, no patch masked and none moved."""

from __future__ import annotations

import dataclasses
from typing import Any

from attlas.errors import UnsupportedModelError
from attlas.interp.families import vit
from attlas.interp.structure import ModelStructure

MODEL_TYPES = ("vit_mae",)
OVERRIDES = {"mask_ratio": 0.0}  # of the config, when a folder is opened


def tower(hf: Any) -> Any:
    """The encoder: what the decoder makes of it are pixels, and no answer about the image."""
    return getattr(hf, "vit", hf)


def describe(hf: Any) -> ModelStructure:
    """Structure of a ViT-MAE's encoder.

    Raises:
        UnsupportedModelError: it masks patches, at random.
    """
    ratio = hf.config.mask_ratio
    if ratio:
        raise UnsupportedModelError(
            f"{type(hf).__name__} masks {ratio:.0%} of the patches at random; set model.config.mask_ratio = 0 to measure whole "
            "images (a folder is opened so)"
        )
    return dataclasses.replace(vit.describe(hf), interpolates=True, shuffles=True)
