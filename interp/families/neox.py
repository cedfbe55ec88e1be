"""GPT-NeoX and Pythia: attention and MLP in parallel, partial RoPE, q, k and v fused head by head, LayerNorm."""

from __future__ import annotations

from typing import Any

from attlas.interp.config import ModelConfig
from attlas.interp.families.rotary import rotate
from attlas.interp.fused import FusedQKV
from attlas.interp.structure import LayerModules, ModelStructure
from attlas.kernels import AttentionRule

MODEL_TYPES = ("gpt_neox",)


def _layer(block: Any, n_heads: int) -> LayerModules:
    attn, fused = block.attention, block.attention.query_key_value
    return LayerModules(
        block=block,
        attn=attn,
        mlp=block.mlp,
        ln1=block.input_layernorm,
        ln2=block.post_attention_layernorm,
        q=fused,
        k=fused,
        v=fused,
        out_proj=attn.dense,
        down_proj=block.mlp.dense_4h_to_h,
        attn_out=block.post_attention_dropout,
        mlp_out=block.post_mlp_dropout,
        rule=AttentionRule(causal=True, scale=float(attn.scaling)),
        mid=None if block.use_parallel_residual else block.post_attention_layernorm,
        fused=FusedQKV(n_heads, n_heads, attn.head_size, by_head=True),
    )


def describe(hf: Any) -> ModelStructure:
    """Structure of a GPTNeoXForCausalLM or GPTNeoXModel."""
    config = hf.config
    base = getattr(hf, "gpt_neox", hf)
    heads = config.num_attention_heads
    cfg = ModelConfig(
        family="neox",
        model_type=config.model_type,
        n_layers=len(base.layers),
        n_heads=heads,
        n_kv_heads=heads,
        d_model=config.hidden_size,
        d_head=config.hidden_size // heads,
        d_mlp=config.intermediate_size,
        n_ctx=config.max_position_embeddings,
        d_vocab=config.vocab_size,
        positional="rotary",
        rotary_dim=base.layers[0].attention.rotary_ndims,
        traits=frozenset({"parallel"} if config.use_parallel_residual else ()),
    )
    return ModelStructure(
        cfg=cfg,
        layers=tuple(_layer(block, heads) for block in base.layers),
        embed=base.embed_in,
        final_norm=base.final_layer_norm,
        unembed=getattr(hf, "lm_head", None),
        rotary=rotate,
    )
