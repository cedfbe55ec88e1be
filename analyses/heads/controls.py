"""Negative controls of an account: a model of random weights on the same data, and the model on shuffled data."""

from __future__ import annotations

import copy
import dataclasses

import torch

from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.interp.wrappers.compiled import uncompiled


def random_model(model: HookedModel, seed: int = 0) -> HookedModel:
    """A model of the same shape with the weights its class starts training from."""
    hf = uncompiled(model.hf)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(hf)(copy.deepcopy(hf.config))
    fresh = fresh.to(device=model.device, dtype=model.dtype).eval()
    return HookedModel(
        fresh,
        name=f"{model.name} (random weights)",
        weight_hash="",
        tokenizer=model.tokenizer,
        image_spec=model.image_spec,
    )


def shuffled(data: TokenDataset | ImageDataset, patch_size: int = 0, seed: int = 0) -> TokenDataset | ImageDataset:
    """The data with its order gone: tokens of each sequence drawn anew behind the first, patches of each image.

    Args:
        patch_size: pixels a side, of images.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(data, TokenDataset):
        order = torch.rand(len(data), data.tokens.shape[1] - 1, generator=generator).argsort(1) + 1
        tokens = torch.cat([data.tokens[:, :1], data.tokens.gather(1, order)], 1)
        return TokenDataset.from_tokens(tokens, f"{data.name} (shuffled)")
    n, channels, height, width = data.pixels.shape
    rows, columns = height // patch_size, width // patch_size
    patches = data.pixels.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    patches = patches.reshape(n, channels, rows * columns, patch_size, patch_size)
    order = torch.rand(n, rows * columns, generator=generator).argsort(1)
    patches = patches.gather(2, order[:, None, :, None, None].expand_as(patches))
    whole = patches.reshape(n, channels, rows, columns, patch_size, patch_size).transpose(3, 4)
    return _with_pixels(data, whole.reshape(n, channels, rows * patch_size, columns * patch_size))


def _with_pixels(data: ImageDataset, pixels: torch.Tensor) -> ImageDataset:
    return dataclasses.replace(data, pixels=pixels, name=f"{data.name} (shuffled)")
