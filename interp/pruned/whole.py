"""Open a compact pruned checkpoint with the whole layout: absent parts come back as zeros, under their old numbers.

The function is the same, so that hooks, analyses and another pruning work as on any model; the time saved is not. Which
heads are absent is kept on the module (`attlas_absent`), because statistics of attention maps mean nothing there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attlas.errors import CheckpointError
from attlas.interp.pruned import modeling_attlas_pruned as modeling
from attlas.interp.pruned.modeling_attlas_pruned import NAMES, PREFIX, blocks_of

_OWN = ("dropped_attention", "dropped_mlp", "kept_heads", "kept_kv_heads")


def compact_class(name: str) -> Any:
    """The class of this name, such as PrunedGPT2LMHeadModel.

    Raises:
        CheckpointError: there is none.
    """
    known = {f"Pruned{stock}" for names in modeling.CLASSES.values() for stock in names}
    if name not in known or not hasattr(modeling, name):
        raise CheckpointError(f"'{name}' is no compact form that Attlas or this version of transformers knows")
    return getattr(modeling, name)


@torch.no_grad()
def whole_layout(compact: Any) -> Any:
    """A stock module with the weights of a compact one, zeros where parts are absent (norms and layer scales: ones)."""
    stock_class: Any = type(compact).__mro__[1]
    config = compact.config
    values = config.to_dict()
    for key in ("model_type", "architectures", "auto_map", "transformers_version", "dtype", *_OWN):
        values.pop(key, None)
    stock = stock_class(stock_class.config_class(**values)).to(next(compact.parameters()).dtype)
    state = compact.state_dict()
    same = {name: state[name] for name, tensor in stock.state_dict().items() if name in state}
    names = NAMES[config.model_type.removeprefix(PREFIX)]
    for index, (block, small) in enumerate(zip(blocks_of(stock), blocks_of(compact), strict=True)):
        for name in _missing(index, config, names):
            module = getattr(block, name)
            neutral = 0.0 if name in (names[0], names[2]) else 1.0
            for key, parameter in module.named_parameters():
                parameter.fill_(0.0 if key.endswith("bias") else neutral)
        if config.kept_heads and index not in config.dropped_attention:
            kept = (config.kept_heads[index], config.kept_kv_heads[index])
            _spread(getattr(block, names[0]), getattr(small, names[0]), *kept)
            same = {name: t for name, t in same.items() if t.shape == stock.state_dict()[name].shape}
    stock.load_state_dict(same, strict=False)
    stock.config.architectures = [stock_class.__name__]
    if getattr(compact, "generation_config", None) is not None:
        stock.generation_config = compact.generation_config
    stock.attlas_absent = _absent_heads(config)
    return stock


def _missing(index: int, config: Any, names: tuple[str, ...]) -> list[str]:
    """Names of the parts of a layer that are absent: module, norm, layer scale."""
    attention, norm1, mlp, norm2, *scales = names
    found = [attention, norm1, *scales[:1]] if index in config.dropped_attention else []
    return found + ([mlp, norm2, *scales[1:]] if index in config.dropped_mlp else [])


def _spread(large: Any, small: Any, heads: list[int], kv_heads: list[int]) -> None:
    """Put the kept heads' weights where they were among all; the others are zero."""
    d_head = large.head_dim
    q, kv = (torch.tensor([h * d_head + i for h in some for i in range(d_head)]) for some in (heads, kv_heads))
    if hasattr(large, "c_attn"):
        width = large.c_attn.weight.shape[1] // 3
        _place(large.c_attn, small.c_attn, torch.cat([q, q + width, q + 2 * width]), out=1)
        _place(large.c_proj, small.c_proj, q, out=None, into=0)
        return
    for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        _place(getattr(large, name), getattr(small, name), rows, out=0)
    _place(large.o_proj, small.o_proj, q, out=None, into=1)


def _place(large: nn.Module, small: nn.Module, at: Tensor, out: int | None, into: int = 0) -> None:
    """Weights of `small` at these indices of the output dimension `out`, or of the input dimension `into`."""
    weight: Any = large.weight
    weight.zero_().index_copy_(into if out is None else out, at, small.weight)
    if getattr(large, "bias", None) is not None:
        bias: Any = large.bias
        bias.copy_(small.bias) if out is None else bias.zero_().index_copy_(0, at, small.bias)


def _absent_heads(config: Any) -> tuple[tuple[int, int], ...]:
    """(layer, head) of every head that the checkpoint lacks."""
    n_heads, found = config.num_attention_heads, []
    for layer in range(config.num_hidden_layers):
        there = config.kept_heads[layer] if config.kept_heads else range(n_heads)
        there = () if layer in config.dropped_attention else there
        found += [(layer, head) for head in range(n_heads) if head not in there]
    return tuple(found)
