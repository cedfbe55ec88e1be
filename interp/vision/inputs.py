"""What a vision model's `forward` is given beside its pixels."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from attlas.errors import ConfigError
from attlas.interp.structure import ModelStructure


def image_inputs(structure: ModelStructure, pixels: Tensor, name: str) -> dict[str, Any]:
    """Keyword arguments for a batch of pixels [B, C, H, W].

    Images of another size than the model's own have its learned positions interpolated to their grid, by transformers (as
    DINOv2 does unasked). A masked autoencoder gets, in place of noise, the order that its patches have.

    Raises:
        ConfigError: the sides are no whole number of patches, or the model's own grid is no square one, which transformers
            would interpolate as if it were.
    """
    given: dict[str, Any] = {"pixel_values": pixels}
    cfg, size = structure.cfg, (pixels.shape[-2], pixels.shape[-1])
    if size != cfg.image_size and structure.interpolates:
        if size[0] % cfg.patch_size or size[1] % cfg.patch_size:
            raise ConfigError(f"images of {size[0]} × {size[1]} px are no whole number of {cfg.patch_size} px patches")
        if cfg.grid[0] != cfg.grid[1]:
            raise ConfigError(
                f"{name} takes images of {cfg.image_size} px only, not {size}: transformers interpolates positions of square "
                f"grids, and its own is {cfg.grid[0]} × {cfg.grid[1]}"
            )
        given["interpolate_pos_encoding"] = True
    if structure.shuffles:
        n_patches = (size[0] // cfg.patch_size) * (size[1] // cfg.patch_size)
        given["noise"] = torch.arange(n_patches, device=pixels.device).float().expand(len(pixels), -1)
    return given


def with_notes(structure: ModelStructure, whole: Any, name: str) -> ModelStructure:
    """The structure with what a person is told when the model is opened: that of two towers one is measured."""
    if not (hasattr(whole, "text_model") and hasattr(whole, "vision_model")):
        return structure
    return dataclasses.replace(structure, notes=(f"{name} is a {type(whole).__name__}: its vision tower is measured",))
