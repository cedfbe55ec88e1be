"""GPT-J: one LayerNorm in front of attention and MLP in parallel, RoPE on neighbouring coordinates of a part of each head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attlas.interp.config import ModelConfig
from attlas.interp.structure import LayerModules, ModelStructure
from attlas.kernels import AttentionRule

MODEL_TYPES = ("gptj",)


def rotate_neighbours(q: Tensor, k: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """RoPE on coordinates 2i and 2i + 1 of q, k [B, head, T, d_head]; sin, cos (in this order) are [B, T, r/2]."""
    sin, cos = (t.repeat_interleave(2, -1).unsqueeze(1) for t in position_embeddings)
    return _turn(q, sin, cos), _turn(k, sin, cos)


def _turn(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    turning, still = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    across = torch.stack((-turning[..., 1::2], turning[..., ::2]), dim=-1).flatten(-2)
    return torch.cat((turning * cos + across * sin, still), dim=-1)


def _layer(block: Any) -> LayerModules:
    attn = block.attn
    return LayerModules(
        block=block,
        attn=attn,
        mlp=block.mlp,
        ln1=block.ln_1,
        ln2=None,
        q=attn.q_proj,
        k=attn.k_proj,
        v=attn.v_proj,
        out_proj=attn.out_proj,
        down_proj=block.mlp.fc_out,
        attn_out=attn,
        mlp_out=block.mlp,
        rule=AttentionRule(causal=True, scale=float(attn.scaling)),
        mid=None,
    )


def describe(hf: Any) -> ModelStructure:
    """Structure of a GPTJForCausalLM or GPTJModel."""
    config, base = hf.config, getattr(hf, "transformer", hf)
    cfg = ModelConfig(
        family="gptj",
        model_type=config.model_type,
        n_layers=len(base.h),
        n_heads=config.n_head,
        n_kv_heads=config.n_head,
        d_model=config.n_embd,
        d_head=config.n_embd // config.n_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
        n_ctx=config.n_positions,
        d_vocab=config.vocab_size,
        positional="rotary",
        rotary_dim=config.rotary_dim or 0,
        rotary_pairs="next",
        traits=frozenset({"parallel"}),
    )
    return ModelStructure(
        cfg=cfg,
        layers=tuple(_layer(block) for block in base.h),
        embed=base.wte,
        final_norm=base.ln_f,
        unembed=getattr(hf, "lm_head", None),
        rotary=rotate_neighbours,
    )
