"""Where training's activations come from: a model run on text or images, or an activation store on disk."""

from __future__ import annotations

import dataclasses

from attlas.data.dataset import Dataset
from attlas.data.images.dataset import default_images, load_images
from attlas.data.text import load_tokens
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.saes.training.config import TrainConfig

HELD_OUT = (32_768, 500)
"""Tokens, or images, that a sweep measures on."""


def load_inputs(model: HookedModel, config: TrainConfig) -> Dataset:
    """The text or images that a training configuration names."""
    if model.cfg.family == "vit":
        if config.images is None:
            return _default_split(model, held_out=False)
        return load_images(config.images, model.image_spec, seed=config.seed)
    seq_len = model.cfg.sequence_length(config.seq_len)
    return load_tokens(
        config.text,
        model.tokenizer,
        seq_len=seq_len,
        n_tokens=config.n_tokens,
        seed=config.seed,
        column=config.column,
        split=config.split,
        prefer="train",
        d_vocab=model.cfg.d_vocab,
        packed=not config.pad,
        chat=config.chat,
    )


def train_and_held_out(model: HookedModel, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """What a training configuration names, and data of the same source that training then does not see.

    The shipped text and a model's default images have held-out parts of their own; of any other source, 32,768 tokens or
    500 images (a fifth at most) are kept from training, drawn by the seed.
    """
    if model.cfg.family == "vit":
        if config.images is None:
            return _default_split(model, held_out=False), _default_split(model, held_out=True, n_images=HELD_OUT[1])
        images = load_images(config.images, model.image_spec, seed=config.seed)
        first, second = images.split(1 - min(1 / 5, HELD_OUT[1] / len(images)), config.seed)
        return first, second
    if config.text == "embedded:train":
        return load_inputs(model, config), held_out(
            model, n_tokens=HELD_OUT[0], seq_len=config.seq_len, seed=config.seed, pad=config.pad
        )
    more = dataclasses.replace(config, n_tokens=config.n_tokens + HELD_OUT[0])
    tokens = load_inputs(model, more)
    return tokens.split(1 - min(1 / 5, HELD_OUT[0] / tokens.tensor.numel()), config.seed)


def _default_split(model: HookedModel, *, held_out: bool, n_images: int | None = None) -> Dataset:
    """The model's default images: four fifths of every class for training, the rest to evaluate on, always the same."""
    train, rest = load_images(default_images(model.image_spec), model.image_spec).split(4 / 5)
    part = dataclasses.replace(train, name=f"{train.name} (train)")
    if held_out:
        part = dataclasses.replace(rest, name=f"{rest.name} (held out)")
    return part if n_images is None else part.take(n_images)


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
    pad: bool = False,
    chat: bool = False,
) -> Dataset:
    """Text, or images for a vision model, to evaluate on; by default images that training by default does not see.

    Args: of `load_tokens` and `load_images`; `pad` gives each document a row of its own (`packed=False` there).

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
        return load_images(images, model.image_spec, n_images=n_images, seed=seed)
    seq_len = model.cfg.sequence_length(seq_len)
    return load_tokens(
        text,
        model.tokenizer,
        seq_len=seq_len,
        n_tokens=n_tokens,
        seed=seed,
        column=column,
        split=split,
        d_vocab=model.cfg.d_vocab,
        packed=not pad,
        chat=chat,
    )
