"""GPT-2: fused c_attn (a Conv1D), learned positions, LayerNorm."""

from __future__ import annotations

from typing import Any

from attlas.interp.config import ModelConfig
from attlas.interp.fused import FusedQKV
from attlas.interp.structure import LayerModules, ModelStructure
from attlas.kernels import AttentionRule

MODEL_TYPES = ("gpt2",)


def describe(hf: Any) -> ModelStructure:
    """Structure of a GPT2LMHeadModel or GPT2Model."""
    config = hf.config
    base = getattr(hf, "transformer", hf)
    d_head = config.n_embd // config.n_head
    cfg = ModelConfig(
        family="gpt2",
        model_type=config.model_type,
        n_layers=len(base.h),
        n_heads=config.n_head,
        n_kv_heads=config.n_head,
        d_model=config.n_embd,
        d_head=d_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
        n_ctx=config.n_positions,
        d_vocab=config.vocab_size,
    )
    layers = []
    for block in base.h:
        c_attn = block.attn.c_attn
        layers.append(
            LayerModules(
                block=block,
                attn=block.attn,
                mlp=block.mlp,
                ln1=block.ln_1,
                ln2=block.ln_2,
                q=c_attn,
                k=c_attn,
                v=c_attn,
                out_proj=block.attn.c_proj,
                down_proj=block.mlp.c_proj,
                attn_out=block.attn,
                mlp_out=block.mlp,
                rule=AttentionRule(causal=True, scale=float(block.attn.scaling)),
                mid=block.ln_2,
                fused=FusedQKV(config.n_head, config.n_head, d_head),
            )
        )
    return ModelStructure(
        cfg=cfg,
        layers=tuple(layers),
        embed=base.wte,
        pos_embed=base.wpe,
        final_norm=base.ln_f,
        unembed=getattr(hf, "lm_head", None),
    )
