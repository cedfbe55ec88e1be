"""Mixtral: Llama's layout with a mixture of experts in place of the MLP."""

from __future__ import annotations

from typing import Any

from attlas.interp.families import llama
from attlas.interp.structure import LayerModules, ModelStructure
from attlas.kernels import AttentionRule

MODEL_TYPES = ("mixtral",)


def _layer(config: Any, block: Any, index: int) -> LayerModules:
    rule = AttentionRule(
        causal=True, sliding_window=config.sliding_window, scale=float(block.self_attn.scaling)
    )  # of all layers
    return llama.layer(config, block, index, down_proj=None, rule=rule)


def describe(hf: Any) -> ModelStructure:
    """Structure of a MixtralForCausalLM or MixtralModel."""
    base = getattr(hf, "model", hf)
    layers = [_layer(hf.config, block, i) for i, block in enumerate(base.layers)]
    return llama.whole(hf, llama.shape(hf, "mixtral", "experts"), layers)
