"""Gemma 1, 2 and 3 (text): norms that multiply by 1 + weight, scaled embeddings, local beside global layers.

Gemma 2 and 3 have norms behind sub-layers too; Gemma 2 caps scores and logits, Gemma 3 norms queries and keys. The
embedding's scale is part of `hook_embed`: it lies in the embedding module.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from attlas.errors import UnsupportedModelError
from attlas.interp.families import llama
from attlas.interp.families.qk_norm import QKNorms
from attlas.interp.structure import LayerModules, ModelStructure

MODEL_TYPES = ("gemma", "gemma2", "gemma3_text")


def _layer(config: Any, block: Any, index: int) -> LayerModules:
    parts = llama.layer(config, block, index)
    if config.model_type == "gemma":
        return parts
    norm = block.pre_feedforward_layernorm
    ends = {"attn_out": block.post_attention_layernorm, "mlp_out": block.post_feedforward_layernorm}
    parts = dataclasses.replace(parts, ln2=norm, mid=norm, **ends)
    if config.model_type == "gemma2":
        cap = config.attn_logit_softcapping
        return dataclasses.replace(parts, rule=dataclasses.replace(parts.rule, softcap=cap))
    return dataclasses.replace(parts, qk_norm=QKNorms(block.self_attn.q_norm, block.self_attn.k_norm, offset=1.0))


def _traits(config: Any) -> list[str]:
    if config.model_type == "gemma":
        return []
    found = ["post_norm", "qk_norm" if config.model_type == "gemma3_text" else "softcap"]
    if config.model_type == "gemma2" and config.attn_logit_softcapping is None:
        found.remove("softcap")
    return found + (["logit_softcap"] if config.final_logit_softcapping is not None else [])


def describe(hf: Any) -> ModelStructure:
    """Structure of a Gemma, Gemma 2 or Gemma 3 text model, with or without its head.

    Raises:
        UnsupportedModelError: one that attends in both directions (embedding models).
    """
    config, base = hf.config, getattr(hf, "model", hf)
    if getattr(config, "use_bidirectional_attention", None):
        raise UnsupportedModelError(
            f"this {config.model_type} attends in both directions (use_bidirectional_attention); only causal ones are read"
        )
    layers = [_layer(config, block, i) for i, block in enumerate(base.layers)]
    cap = getattr(config, "final_logit_softcapping", None) if config.model_type != "gemma" else None
    return llama.whole(hf, llama.shape(hf, "gemma", *_traits(config)), layers, gain_offset=1.0, logit_softcap=cap)
