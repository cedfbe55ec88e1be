"""Model families: one file each, and one line here."""

from __future__ import annotations

from typing import Any

from attlas.errors import UnsupportedModelError, nearest
from attlas.interp.families import (
    clip,
    gemma,
    gpt2,
    gpt_oss,
    gptj,
    llama,
    mixtral,
    neox,
    olmo2,
    phi3,
    qwen3,
    siglip,
    vit,
    vit_mae,
)
from attlas.interp.structure import ModelStructure

FAMILIES = (
    clip,
    gemma,
    gpt2,
    gpt_oss,
    gptj,
    llama,
    mixtral,
    neox,
    olmo2,
    phi3,
    qwen3,
    siglip,
    vit,
    vit_mae,
)
# What some model types have that no adapter reads.
_UNREAD = {
    "bloom": "ALiBi biases",
    "mpt": "ALiBi biases",
    "falcon": "ALiBi biases, or keys fused by group",
    "mamba": "no attention",
    "mamba2": "no attention",
    "t5": "cross-attention and biases by distance",
    "bart": "cross-attention",
    "whisper": "cross-attention",
    "deepseek_v2": "keys and values from one compressed vector",
    "deepseek_v3": "keys and values from one compressed vector",
    "llama4_text": "rotary embeddings on some layers, norms behind them, chunks and a temperature by position",
    "llama4": "a vision tower beside a text model of rotary embeddings on some layers, chunks and a temperature by position",
    "gemma3": "a vision tower beside the text model (its text model is gemma3_text)",
}


def supported() -> list[str]:
    """Every `model_type` that has an adapter, in order."""
    return sorted(t for family in FAMILIES for t in family.MODEL_TYPES)


def unsupported(model_type: Any) -> UnsupportedModelError:
    """The error for a model type without an adapter: the nearest that has one, and what is missing."""
    if not isinstance(model_type, str):
        return UnsupportedModelError(
            f"config.json names no model_type (it is {model_type!r}); write one of {', '.join(supported())}"
        )
    name = model_type
    lack = f"{_UNREAD[name]}, which no adapter reads" if name in _UNREAD else "no adapter (interp/families/)"
    return UnsupportedModelError(
        f"model type '{name}' has {lack}{nearest(name, supported())}; supported are {', '.join(supported())}"
    )


def _family(model_type: Any) -> Any:
    return next((family for family in FAMILIES if model_type in family.MODEL_TYPES), None)


def overrides(model_type: str) -> dict[str, Any]:
    """Values of config.json that are set when a folder of this type is opened (ViT-MAE: nothing is masked)."""
    return dict(getattr(_family(model_type), "OVERRIDES", {}))


def tower(hf: Any) -> Any:
    """The part of a module that is run: the vision tower of CLIP and SigLIP, a masked autoencoder's encoder; else all."""
    find = getattr(_family(getattr(getattr(hf, "config", None), "model_type", None)), "tower", None)
    return hf if find is None else find(hf)


def describe(hf: Any) -> ModelStructure:
    """Structure of any supported Hugging Face model.

    Raises:
        UnsupportedModelError: no family has its `model_type`, or it is one of transformers' `…Backbone` classes.
    """
    model_type, name = getattr(getattr(hf, "config", None), "model_type", type(hf).__name__), type(hf).__name__
    if name.endswith("Backbone"):
        raise UnsupportedModelError(
            f"{name} gives feature maps and no last hidden state; open the folder with {name.removesuffix('Backbone')}Model"
        )
    family = _family(model_type)
    if family is None:
        raise unsupported(model_type)
    found: ModelStructure = family.describe(hf)
    return found
