"""Llama and its kin with the same layout: RMSNorm, rotary positions, grouped-query attention."""

from __future__ import annotations

from typing import Any

from attlas.interp.anatomy import Anatomy, LayerParts
from attlas.interp.config import ModelConfig
from attlas.interp.families.rotary import rotate
from attlas.kernels import AttentionRule

MODEL_TYPES = ("llama", "mistral", "qwen2")


def sliding_window(config: Any, attn: Any, layer: int) -> int | None:
    """Width of a layer's sliding window as its model masks it (the query's own position among them), or None."""
    if hasattr(attn, "sliding_window"):  # Qwen2: by layer
        return attn.sliding_window
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return config.sliding_window if kinds[layer] == "sliding_attention" else None
    return config.sliding_window if config.model_type == "mistral" else None  # Llama has none, whatever its config says


def describe(hf: Any) -> Anatomy:
    """Anatomy of a LlamaForCausalLM, LlamaModel, or a model of the same layout."""
    config = hf.config
    base = getattr(hf, "model", hf)
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cfg = ModelConfig(
        family="llama",
        model_type=config.model_type,
        n_layers=len(base.layers),
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        d_model=config.hidden_size,
        d_head=d_head,
        d_mlp=config.intermediate_size,
        n_ctx=config.max_position_embeddings,
        d_vocab=config.vocab_size,
        positional="rotary",
        norm="rms",
    )
    layers = tuple(
        LayerParts(
            block=block,
            attn=block.self_attn,
            mlp=block.mlp,
            ln1=block.input_layernorm,
            ln2=block.post_attention_layernorm,
            q=block.self_attn.q_proj,
            k=block.self_attn.k_proj,
            v=block.self_attn.v_proj,
            out_proj=block.self_attn.o_proj,
            down_proj=block.mlp.down_proj,
            attn_out=block.self_attn,
            mlp_out=block.mlp,
            rule=AttentionRule(
                causal=True,
                sliding_window=sliding_window(config, block.self_attn, index),
                scale=float(block.self_attn.scaling),
            ),
            mid=block.post_attention_layernorm,
        )
        for index, block in enumerate(base.layers)
    )
    return Anatomy(
        cfg=cfg,
        layers=layers,
        embed=base.embed_tokens,
        final_norm=base.norm,
        unembed=getattr(hf, "lm_head", None),
        rotary=rotate,
    )
