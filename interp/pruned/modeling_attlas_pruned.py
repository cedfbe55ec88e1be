"""Models without some of their attention, MLP modules or heads. Needs transformers alone: this file travels in checkpoints.

A dropped module, its norm and its layer scale are absent: no weights, no arithmetic, no entries in the KV cache. The
config says which, by the layers of the checkpoint: `dropped_attention`, `dropped_mlp`; and, where heads are gone,
`kept_heads` and `kept_kv_heads`, for every layer the numbers that the kept ones have among `num_attention_heads` and
`num_key_value_heads`.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

PREFIX = "attlas_pruned_"
_LLAMA = ("self_attn", "input_layernorm", "mlp", "post_attention_layernorm")
_VIT = ("attention", "layernorm_before", "mlp", "layernorm_after")
_DINOV2 = ("attention", "norm1", "mlp", "norm2", "layer_scale1", "layer_scale2")
# model type → where the parts of a layer sit (attention, norm before it, MLP, norm before it; layer scales after the two)
NAMES: dict[str, tuple[str, ...]] = {
    "gpt2": ("attn", "ln_1", "mlp", "ln_2"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "vit": _VIT,
    "deit": _VIT,
    "ijepa": _VIT,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
}
_CAUSAL, _IMAGE = "AutoModelForCausalLM", "AutoModelForImageClassification"
# config class → the model classes that have a compact form, each with the auto class that opens it
CLASSES: dict[str, dict[str, str]] = {
    "GPT2Config": {"GPT2LMHeadModel": _CAUSAL, "GPT2Model": "AutoModel"},
    "LlamaConfig": {"LlamaForCausalLM": _CAUSAL, "LlamaModel": "AutoModel"},
    "MistralConfig": {"MistralForCausalLM": _CAUSAL, "MistralModel": "AutoModel"},
    "Qwen2Config": {"Qwen2ForCausalLM": _CAUSAL, "Qwen2Model": "AutoModel"},
    "ViTConfig": {"ViTForImageClassification": _IMAGE, "ViTModel": "AutoModel"},
    "DeiTConfig": {
        "DeiTForImageClassification": _IMAGE,
        "DeiTForImageClassificationWithTeacher": _IMAGE,
        "DeiTModel": "AutoModel",
    },
    "IJepaConfig": {"IJepaForImageClassification": _IMAGE, "IJepaModel": "AutoModel"},
    "Dinov2Config": {"Dinov2ForImageClassification": _IMAGE, "Dinov2Model": "AutoModel"},
    "Dinov2WithRegistersConfig": {
        "Dinov2WithRegistersForImageClassification": _IMAGE,
        "Dinov2WithRegistersModel": "AutoModel",
    },
}


class AbsentAttention(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, None]:
        return hidden_states.new_zeros(()), None


class AbsentMLP(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(())


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
    """Take out what the config names.

    Kept attention layers keep their slot in the KV cache, and with it the kind of cache that `layer_types` gives it; but
    the first of them takes slot 0, which transformers asks for the length of the sequence.
    """
    config = model.config
    attention, norm1, mlp, norm2, *scales = NAMES[config.model_type.removeprefix(PREFIX)]
    blocks = blocks_of(model)
    kept = [index for index in range(len(blocks)) if index not in config.dropped_attention]
    for index, block in enumerate(blocks):
        gone = []
        if index not in kept:
            setattr(block, attention, AbsentAttention())
            gone += [norm1, *scales[:1]]
        else:
            module = getattr(block, attention)
            if config.kept_heads:
                shrink(module, len(config.kept_heads[index]), len(config.kept_kv_heads[index]))
            if hasattr(module, "layer_idx"):
                module.layer_idx = 0 if index == kept[0] else index
        if index in config.dropped_mlp:
            setattr(block, mlp, AbsentMLP())
            gone += [norm2, *scales[1:]]
        for name in gone:
            setattr(block, name, nn.Identity())


def _config_class(base: Any) -> Any:
    fields = ("dropped_attention", "dropped_mlp", "kept_heads", "kept_kv_heads")
    body: dict[str, Any] = {
        "__module__": __name__,
        "__annotations__": dict.fromkeys(fields, "list | tuple"),
        "model_type": PREFIX + base.model_type,
        **dict.fromkeys(fields, ()),
    }
    return type("Pruned" + base.__name__, (base,), body)


def _model_class(base: Any, config_class: Any) -> Any:
    def __init__(self: Any, config: Any) -> None:
        base.__init__(self, config)
        strip(self)

    body = {"__module__": __name__, "config_class": config_class, "__init__": __init__}
    return type("Pruned" + base.__name__, (base,), body)


for _name, _models in CLASSES.items():  # PrunedGPT2Config, PrunedGPT2LMHeadModel, …
    if hasattr(transformers, _name):
        _config = _config_class(getattr(transformers, _name))
        globals()[_config.__name__] = _config
        for _model in _models:
            if hasattr(transformers, _model):
                globals()["Pruned" + _model] = _model_class(getattr(transformers, _model), _config)
