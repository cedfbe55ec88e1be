"""A tiny random model of every family of vision models, in the ratios of a published config."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "patch_size": 4,
}
_TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 600,
    "max_position_embeddings": 24,
}  # fmt: skip
# A token's id must lie in the vocabulary: CLIP's end is the largest (config eos 2, as published).
_CLIP_TEXT = {**_TEXT, "eos_token_id": 2, "bos_token_id": 0}


def _clip() -> Any:
    import transformers as tf

    vision = {**_SHAPE, "image_size": 28}  # 7 × 7 patches, as ViT-B/32
    return tf.CLIPModel(tf.CLIPConfig(text_config=_CLIP_TEXT, vision_config=vision, projection_dim=32))


def _siglip() -> Any:
    import transformers as tf

    text = {**_TEXT, "hidden_size": 48, "num_attention_heads": 3, "projection_size": 48, "pad_token_id": 1}
    return tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config={**_SHAPE, "image_size": 24}))


def _vit(kind: str, classes: int = 0, **more: Any) -> Any:
    import transformers as tf

    config = getattr(tf, f"{kind}Config")(**{**_SHAPE, "image_size": 24, "num_labels": classes or 2, **more})
    return getattr(tf, f"{kind}ForImageClassification" if classes else f"{kind}Model")(config)


def _classifier(kind: str) -> Any:
    import transformers as tf

    config = getattr(tf, f"{kind}Config")(vision_config={**_SHAPE, "image_size": 24}, num_labels=5)
    return getattr(tf, f"{kind}ForImageClassification")(config)


MAKE: dict[str, tuple[str, Callable[[], Any]]] = {
    "vit": ("vit-base-patch16-224", lambda: _vit("ViT", 5)),
    "deit": ("deit-base-distilled-patch16-224", lambda: _vit("DeiT", 5)),
    "ijepa": ("ijepa_vith14_1k", lambda: _vit("IJepa")),
    "dinov2": ("dinov2-small", lambda: _vit("Dinov2")),
    "dinov2-registers": (
        "dinov2-with-registers-small",
        lambda: _vit("Dinov2WithRegisters", num_attention_heads=6, num_register_tokens=4),
    ),
    "vit-mae": ("vit-mae-base", lambda: _vit("ViTMAE", mask_ratio=0.0)),
    "clip": ("clip-vit-base-patch32", _clip),
    "clip-classifier": ("clip-vit-base-patch32, with a classifier", lambda: _classifier("CLIP")),
    "siglip": ("siglip-base-patch16-224", _siglip),
    "siglip-classifier": ("siglip-base-patch16-224, with a classifier", lambda: _classifier("Siglip")),
}
"""name -> (the published model whose ratios it has, how it is made)"""


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A fresh module in evaluation mode; weights are far from 0, so that attention is far from uniform."""
    torch.manual_seed(7)
    hf = MAKE[name][1]()
    for key, parameter in hf.named_parameters():
        if key.startswith("logit_"):
            continue
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.25)
        elif "lambda" in key or key.endswith("weight"):
            parameter.data += torch.empty_like(parameter).uniform_(-0.4, 0.4)
        else:
            torch.nn.init.normal_(parameter, 0, 0.3)
    return hf.to(dtype).eval()


@functools.cache
def tiny(name: str) -> Any:
    """The shared module of a row; tests leave it as it is."""
    return make(name)


def pixels_for(name: str, n: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Random pixels [n, 3, height, width], of the model's own size where none is given."""
    side = 28 if name == "clip" else 24
    return torch.randn(n, 3, *(size or (side, side)), generator=torch.Generator().manual_seed(5))
