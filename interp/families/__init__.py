"""Model families: one file each, and one line here."""

from __future__ import annotations

from typing import Any

from attlas.errors import UnsupportedModelError
from attlas.interp.anatomy import Anatomy
from attlas.interp.families import gpt2, llama, vit

FAMILIES = (gpt2, llama, vit)


def describe(hf: Any) -> Anatomy:
    """Anatomy of any supported Hugging Face model.

    Raises:
        UnsupportedModelError: no family knows its `model_type`.
    """
    model_type = getattr(getattr(hf, "config", None), "model_type", type(hf).__name__)
    for family in FAMILIES:
        if model_type in family.MODEL_TYPES:
            return family.describe(hf)
    known = sorted(t for family in FAMILIES for t in family.MODEL_TYPES)
    raise UnsupportedModelError(f"model type '{model_type}' has no adapter; supported are {', '.join(known)}")
