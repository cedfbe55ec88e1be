"""gpt-oss: a learned sink a head beside the keys, local beside global layers, a mixture of experts."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from attlas.interp.families import llama
from attlas.interp.families.rotary import rotate
from attlas.interp.structure import LayerModules, ModelStructure

MODEL_TYPES = ("gpt_oss",)


def rotate_by_half(q: Tensor, k: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """RoPE from cos, sin of [B, T, d_head/2], one number a pair."""
    cos, sin = (t.repeat(1, 1, 2) for t in position_embeddings)
    return rotate(q, k, (cos, sin))


def _layer(config: Any, block: Any, index: int) -> LayerModules:
    parts = llama.layer(config, block, index, down_proj=None)
    return dataclasses.replace(parts, rule=dataclasses.replace(parts.rule, sinks=block.self_attn.sinks))


def describe(hf: Any) -> ModelStructure:
    """Structure of a GptOssForCausalLM or GptOssModel."""
    base = getattr(hf, "model", hf)
    layers = [_layer(hf.config, block, i) for i, block in enumerate(base.layers)]
    return llama.whole(hf, llama.shape(hf, "gpt_oss", "sinks", "experts"), layers, rotary=rotate_by_half)
