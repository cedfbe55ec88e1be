"""SigLIP's vision tower: no CLS; an image's embedding is drawn from the patches by a learned query (attention pooling)."""

from __future__ import annotations

from typing import Any

from attlas.interp.families import clip
from attlas.interp.structure import ModelStructure, find

MODEL_TYPES = ("siglip", "siglip_vision_model")

tower = clip.tower


def describe(hf: Any) -> ModelStructure:
    """Structure of a SigLIP vision tower, with or without its pooling head or a classifier."""
    base, head = clip.parts(hf)
    named = hasattr(hf, "unembedding")  # classes given as text, each judged by itself
    return ModelStructure(
        cfg=clip.vision_config(base.config, len(base.encoder.layers), (), head),
        layers=tuple(clip.encoder_layer(block) for block in base.encoder.layers),
        embed=base.embeddings,
        final_norm=find(base, "post_layernorm"),
        unembed=None if named else head,
        independent=named,
        pool=getattr(base, "head", None),
        interpolates=True,
    )
