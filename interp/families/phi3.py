"""Phi-3 and Phi-4-mini: q, k and v side by side in one projection, partial RoPE, one sliding window for all layers."""

from __future__ import annotations

from typing import Any

from attlas.interp.config import ModelConfig
from attlas.interp.families import llama
from attlas.interp.fused import FusedQKV
from attlas.interp.structure import LayerModules, ModelStructure
from attlas.kernels import AttentionRule

MODEL_TYPES = ("phi3",)


def _layer(config: Any, cfg: ModelConfig, block: Any, index: int) -> LayerModules:
    attn = block.self_attn
    return llama.layer(
        config,
        block,
        index,
        q=attn.qkv_proj,
        k=attn.qkv_proj,
        v=attn.qkv_proj,
        fused=FusedQKV(cfg.n_heads, cfg.n_kv_heads, cfg.d_head),
        attn_out=block.resid_attn_dropout,
        mlp_out=block.resid_mlp_dropout,
        rule=AttentionRule(causal=True, sliding_window=config.sliding_window, scale=float(attn.scaling)),
    )


def describe(hf: Any) -> ModelStructure:
    """Structure of a Phi3ForCausalLM or Phi3Model."""
    base = getattr(hf, "model", hf)
    cfg = llama.shape(hf, "phi3", rotary_dim=2 * len(base.rotary_emb.inv_freq))
    return llama.whole(hf, cfg, [_layer(hf.config, cfg, block, i) for i, block in enumerate(base.layers)])
