"""The text or images that suit a model, for verbs that take either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attlas.cli.common import TextArgs
from attlas.errors import UnsupportedModelError

if TYPE_CHECKING:
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.text import TokenDataset
    from attlas.interp import HookedModel


@dataclass(frozen=True)
class DataArgs(TextArgs):
    """Text for language models, images for vision models."""

    images: str = "auto"
    """For vision models: embedded:glyphs, sklearn:samples, a folder or an .npz; auto suits the model."""
    n_images: int = 500
    """For vision models: how many images, drawn by the seed."""


def load_data(model: HookedModel, args: DataArgs, seed: int = 0) -> TokenDataset | ImageDataset:
    """Read what the arguments name, in the seed's order, cut to the model's context window or image size."""
    from attlas.data.images.dataset import load_images
    from attlas.data.text import load_tokens

    if model.cfg.family == "vit":
        return load_images(image_source(model, args.images), model.image_spec, n_images=args.n_images, seed=seed)
    seq_len = model.cfg.sequence_length(args.seq_len)
    return load_tokens(
        args.text,
        model.tokenizer,
        seq_len=seq_len,
        n_tokens=args.n_tokens,
        seed=seed,
        column=args.column,
        split=args.split,
        d_vocab=model.cfg.d_vocab,
    )


def image_source(model: HookedModel, source: str) -> str:
    """`auto` → the embedded glyphs for grey models, sample pictures for the rest.

    Raises:
        UnsupportedModelError: a language model.
    """
    if model.cfg.family != "vit":
        raise UnsupportedModelError(f"{model.name} is a language model ({model.cfg.family}); give a vision model")
    if source != "auto":
        return source
    grey = model.image_spec is not None and model.image_spec.n_channels == 1
    return "embedded:glyphs" if grey else "sklearn:samples"
