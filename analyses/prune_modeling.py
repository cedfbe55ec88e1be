"""Models without some of their attention or MLP modules. Needs transformers alone: this file travels in the checkpoint.

A dropped module and its norm are absent: no weights, no arithmetic, and no entries in the KV cache. The config says
which: `dropped_attention` and `dropped_mlp`, lists of layers; `heads_per_layer`, where heads are gone, (heads, kv heads)
of every layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D


class AbsentAttention(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, None]:
        return hidden_states.new_zeros(()), None


class AbsentMLP(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(())


# where the parts of a layer sit: (attention, norm before it, MLP, norm before it)
NAMES = {
    "gpt2": ("attn", "ln_1", "mlp", "ln_2"),
    "llama": ("self_attn", "input_layernorm", "mlp", "post_attention_layernorm"),
    "vit": ("attention", "layernorm_before", "mlp", "layernorm_after"),
    "dinov2": ("attention", "norm1", "mlp", "norm2"),
}


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The list of layers: the longest module list at the least depth."""
    lists = [(name.count("."), name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    return min(lists, key=lambda entry: entry[:2])[2]


def shrink(attention: Any, n_heads: int, n_kv_heads: int) -> None:
    """Give an attention module fewer heads (new, unset weights); the size of a head stays."""
    d_head = attention.head_dim
    if hasattr(attention, "c_attn"):  # GPT-2: one Conv1D [in, out] holds q, k and v
        d_model = attention.c_attn.weight.shape[0]
        attention.num_heads, attention.split_size = n_heads, n_heads * d_head
        attention.c_attn = Conv1D(3 * n_heads * d_head, d_model)
        attention.c_proj = Conv1D(d_model, n_heads * d_head)
        return
    for name, heads in (("q_proj", n_heads), ("k_proj", n_kv_heads), ("v_proj", n_kv_heads)):
        old = getattr(attention, name)
        setattr(attention, name, nn.Linear(old.in_features, heads * d_head, bias=old.bias is not None))
    old = attention.o_proj
    attention.o_proj = nn.Linear(n_heads * d_head, old.out_features, bias=old.bias is not None)
    if hasattr(attention, "num_key_value_groups"):
        attention.num_key_value_groups = n_heads // n_kv_heads


def strip(model: Any) -> None:
    """Take out what the config names, and number the kept attention layers anew, so that the cache holds only them."""
    config = model.config
    attention, norm1, mlp, norm2 = NAMES[config.model_type.removeprefix("attlas_pruned_")]
    slot = 0
    for index, block in enumerate(blocks_of(model)):
        if index in config.dropped_attention:
            setattr(block, attention, AbsentAttention())
            setattr(block, norm1, nn.Identity())
        else:
            module = getattr(block, attention)
            if config.heads_per_layer:
                shrink(module, *config.heads_per_layer[index])
            if hasattr(module, "layer_idx"):
                module.layer_idx = slot
            slot += 1
        if index in config.dropped_mlp:
            setattr(block, mlp, AbsentMLP())
            setattr(block, norm2, nn.Identity())


class PrunedGPT2Config(GPT2Config):
    model_type = "attlas_pruned_gpt2"
    dropped_attention: list[int] | tuple[int, ...] = ()
    dropped_mlp: list[int] | tuple[int, ...] = ()
    heads_per_layer: list[list[int]] | tuple[()] = ()


class PrunedLlamaConfig(LlamaConfig):
    model_type = "attlas_pruned_llama"
    dropped_attention: list[int] | tuple[int, ...] = ()
    dropped_mlp: list[int] | tuple[int, ...] = ()
    heads_per_layer: list[list[int]] | tuple[()] = ()


class PrunedViTConfig(ViTConfig):
    model_type = "attlas_pruned_vit"
    dropped_attention: list[int] | tuple[int, ...] = ()
    dropped_mlp: list[int] | tuple[int, ...] = ()
    heads_per_layer: list[list[int]] | tuple[()] = ()


class PrunedDinov2Config(Dinov2Config):
    model_type = "attlas_pruned_dinov2"
    dropped_attention: list[int] | tuple[int, ...] = ()
    dropped_mlp: list[int] | tuple[int, ...] = ()
    heads_per_layer: list[list[int]] | tuple[()] = ()


class PrunedGPT2LMHeadModel(GPT2LMHeadModel):
    config_class = PrunedGPT2Config

    def __init__(self, config: PrunedGPT2Config) -> None:
        super().__init__(config)
        strip(self)


class PrunedLlamaForCausalLM(LlamaForCausalLM):
    config_class = PrunedLlamaConfig

    def __init__(self, config: PrunedLlamaConfig) -> None:
        super().__init__(config)
        strip(self)


class PrunedViTForImageClassification(ViTForImageClassification):
    config_class = PrunedViTConfig

    def __init__(self, config: PrunedViTConfig) -> None:
        super().__init__(config)
        strip(self)


class PrunedDinov2Model(Dinov2Model):
    config_class = PrunedDinov2Config

    def __init__(self, config: PrunedDinov2Config) -> None:
        super().__init__(config)
        strip(self)
