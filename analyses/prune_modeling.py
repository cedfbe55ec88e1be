"""Models without some of their attention or MLP modules. Needs transformers alone: this file travels in the checkpoint.

A dropped module and its norm are absent: no weights, no arithmetic, and no entries in the KV cache. The config says
which: `dropped_attention` and `dropped_mlp`, lists of layers.
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


def strip(model: nn.Module) -> None:
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


class PrunedLlamaConfig(LlamaConfig):
    model_type = "attlas_pruned_llama"
    dropped_attention: list[int] | tuple[int, ...] = ()
    dropped_mlp: list[int] | tuple[int, ...] = ()


class PrunedViTConfig(ViTConfig):
    model_type = "attlas_pruned_vit"
    dropped_attention: list[int] | tuple[int, ...] = ()
    dropped_mlp: list[int] | tuple[int, ...] = ()


class PrunedDinov2Config(Dinov2Config):
    model_type = "attlas_pruned_dinov2"
    dropped_attention: list[int] | tuple[int, ...] = ()
    dropped_mlp: list[int] | tuple[int, ...] = ()


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
