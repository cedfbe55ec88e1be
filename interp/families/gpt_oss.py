"""gpt-oss: a learned sink a head beside the keys, local beside global layers, a mixture of experts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attlas.interp.families import llama
from attlas.interp.families.rotary import rotate
from attlas.interp.structure import ModelStructure

MODEL_TYPES = ("gpt_oss",)


def rotate_by_half(q: Tensor, k: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """RoPE from cos, sin of [B, T, d_head/2], one number a pair."""
    cos, sin = (t.repeat(1, 1, 2) for t in position_embeddings)
    return rotate(q, k, (cos, sin))


def describe(hf: Any) -> ModelStructure:
    """Structure of a GptOssForCausalLM or GptOssModel."""
    base = getattr(hf, "model", hf)
    layers = [
        llama.layer(hf.config, block, i, down_proj=None, sinks=block.self_attn.sinks)
        for i, block in enumerate(base.layers)
    ]
    return llama.whole(hf, llama.shape(hf, "gpt_oss", "sinks", "experts"), layers, rotary=rotate_by_half)
