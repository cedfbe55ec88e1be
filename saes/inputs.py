"""Where training's activations come from: a model run on text or images, or an activation store on disk."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from attlas.data.images.dataset import load_images
from attlas.data.text import TokenDataset, load_tokens
from attlas.data.workspace import Ref
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.saes.training.config import TrainConfig

if TYPE_CHECKING:
    from attlas.data.images.dataset import ImageDataset


HELD_OUT = (32_768, 500)
"""Tokens, or images, that a sweep measures on."""


@dataclass(frozen=True)
class Inputs:
    """What a model is run on.

    Attributes:
        tensor: tokens int64 [n, T], or pixels float32 [n, C, H, W].
        ref: name and hash of the data.
        labels: int64 [n] for labelled images, else None.
        class_names: of the labels, where they have names.
    """

    tensor: Tensor
    ref: Ref
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, data: Inputs | TokenDataset | ImageDataset) -> Inputs:
        """The inputs a data set of Attlas holds."""
        if isinstance(data, Inputs):
            return data
        if hasattr(data, "tokens"):
            return cls(data.tokens, data.ref)
        return cls(data.pixels, data.ref, data.labels, data.class_names)


def default_images(model: HookedModel) -> str:
    """The image source that suits a vision model where none is named."""
    return "embedded:glyphs" if model.image_spec is not None and model.image_spec.n_channels == 1 else "sklearn:samples"


def load_inputs(model: HookedModel, config: TrainConfig) -> Inputs:
    """The text or images that a training configuration names."""
    if model.cfg.family == "vit":
        if config.images is None:
            return _default_split(model, held_out=False)
        return Inputs.of(load_images(config.images, model.image_spec, seed=config.seed))
    seq_len = model.cfg.sequence_length(config.seq_len)
    return Inputs.of(
        load_tokens(
            config.text,
            model.tokenizer,
            seq_len=seq_len,
            n_tokens=config.n_tokens,
            seed=config.seed,
            column=config.column,
            split=config.split,
            prefer="train",
            d_vocab=model.cfg.d_vocab,
        )
    )


def train_and_held_out(model: HookedModel, config: TrainConfig) -> tuple[Inputs, Inputs]:
    """What a training configuration names, and data of the same source that training then does not see.

    The shipped text and a model's default images have held-out parts of their own; of any other source, 32,768 tokens or
    500 images (a fifth at most) are kept from training, drawn by the seed.
    """
    if model.cfg.family == "vit":
        if config.images is None:
            return _default_split(model, held_out=False), _default_split(model, held_out=True, n_images=HELD_OUT[1])
        images = load_images(config.images, model.image_spec, seed=config.seed)
        first, second = images.split(1 - min(1 / 5, HELD_OUT[1] / len(images)), config.seed)
        return Inputs.of(first), Inputs.of(second)
    if config.text == "embedded:train":
        return load_inputs(model, config), held_out(
            model, n_tokens=HELD_OUT[0], seq_len=config.seq_len, seed=config.seed
        )
    more = dataclasses.replace(config, n_tokens=config.n_tokens + HELD_OUT[0])
    tokens = TokenDataset.from_tokens(load_inputs(model, more).tensor, config.text)
    parts = tokens.split(1 - min(1 / 5, HELD_OUT[0] / tokens.n_tokens), config.seed)
    return Inputs.of(parts[0]), Inputs.of(parts[1])


def _default_split(model: HookedModel, *, held_out: bool, n_images: int | None = None) -> Inputs:
    """The model's default images: four fifths of every class for training, the rest to evaluate on, always the same."""
    train, rest = load_images(default_images(model), model.image_spec).split(4 / 5)
    part = dataclasses.replace(train, name=f"{train.name} (train)")
    if held_out:
        part = dataclasses.replace(rest, name=f"{rest.name} (held out)")
    return Inputs.of(part if n_images is None else part.take(n_images))


def held_out(
    model: AnyModel,
    text: str = "embedded:val",
    images: str | None = None,
    *,
    column: str | None = None,
    split: str | None = None,
    n_tokens: int = 65_536,
    n_images: int | None = None,
    seq_len: int = 256,
    seed: int = 0,
) -> Inputs:
    """Text, or images for a vision model, to evaluate on; by default images that training by default does not see.

    Example:
        >>> from attlas.saes import held_out
        >>> held_out(model, n_tokens=128, seq_len=32).ref.name
        'embedded:val'
        >>> held_out(vit_model, n_images=8).ref.name
        'embedded:glyphs (held out)'
    """
    model = as_hooked(model)
    if model.cfg.family == "vit":
        if images is None:
            return _default_split(model, held_out=True, n_images=n_images)
        return Inputs.of(load_images(images, model.image_spec, n_images=n_images, seed=seed))
    seq_len = model.cfg.sequence_length(seq_len)
    return Inputs.of(
        load_tokens(
            text,
            model.tokenizer,
            seq_len=seq_len,
            n_tokens=n_tokens,
            seed=seed,
            column=column,
            split=split,
            d_vocab=model.cfg.d_vocab,
        )
    )
