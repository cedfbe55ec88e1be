"""OLMo 2 and 3: no norms in front of sub-layers but behind them, and norms of queries and keys over all heads together.

OLMo 3: local beside global layers.
"""

from __future__ import annotations

from typing import Any

from attlas.interp.families import llama
from attlas.interp.families.qk_norm import QKNorms
from attlas.interp.structure import LayerModules, ModelStructure

MODEL_TYPES = ("olmo2", "olmo3")


def _layer(config: Any, block: Any, index: int) -> LayerModules:
    return llama.layer(
        config,
        block,
        index,
        ln2=None,
        mid=block.mlp,
        attn_out=block.post_attention_layernorm,
        mlp_out=block.post_feedforward_layernorm,
        qk_norm=QKNorms(block.self_attn.q_norm, block.self_attn.k_norm, over_heads=True),
    )


def describe(hf: Any) -> ModelStructure:
    """Structure of an Olmo2ForCausalLM, Olmo2Model, or OLMo 3's."""
    base = getattr(hf, "model", hf)
    layers = [_layer(hf.config, block, i) for i, block in enumerate(base.layers)]
    return llama.whole(hf, llama.shape(hf, "olmo2", "post_norm", "qk_norm"), layers)
