"""Qwen3: Llama's layout with a norm of each head's queries and keys."""

from __future__ import annotations

from typing import Any

from attlas.interp.families import llama
from attlas.interp.families.qk_norm import QKNorms
from attlas.interp.structure import ModelStructure

MODEL_TYPES = ("qwen3",)


def describe(hf: Any) -> ModelStructure:
    """Structure of a Qwen3ForCausalLM or Qwen3Model."""
    base = getattr(hf, "model", hf)
    layers = [
        llama.layer(hf.config, block, i, qk_norm=QKNorms(block.self_attn.q_norm, block.self_attn.k_norm))
        for i, block in enumerate(base.layers)
    ]
    return llama.whole(hf, llama.shape(hf, "qwen3", "qk_norm"), layers)
