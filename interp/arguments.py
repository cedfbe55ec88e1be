"""What a forward call may be given besides its inputs, and positions of padded rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attlas.errors import ConfigError, nearest
from attlas.interp.tokens import token_texts
from attlas.interp.wrappers.compiled import uncompiled

# Names of TransformerLens and Hugging Face for which there is another way here.
ADVICE = {
    "incl_bwd": "cached tensors are in the graph: use torch.autograd.grad, or backward() after retain_grad()",
    "bwd_hooks": "cached tensors are in the graph: use tensor.register_hook inside a hook function",
    "fwd_hooks": "use `with model.hooks({name: function}):`",
    "names_filter": "it is called names",
    "pos_slice": "slice the cached tensors, [:, pos]",
    "return_type": "logits are returned; model.cross_entropy gives losses",
    "loss_per_token": "model.cross_entropy gives a loss per token",
    "labels": "model.cross_entropy gives losses",
    "prepend_bos": "give it to to_tokens",
    "padding_side": "pad the tokens and give attention_mask",
    "remove_batch_dim": "index the cached tensors, [0]",
    "return_cache_object": "the cache is a dict",
    "device": "give it to load_model",
    "start_at_layer": "use model.hooks on 'blocks.N.hook_resid_pre'",
    "inputs_embeds": "use model.hooks on 'hook_embed'",
    "output_attentions": "ask for '*hook_pattern'",
    "output_hidden_states": "ask for '*hook_resid_pre'",
    "return_dict": "tensors are returned",
    "use_cache": "every call is a whole pass, without a key-value cache",
    "past_key_values": "every call is a whole pass, without a key-value cache",
    "cache": "every call is a whole pass, without a key-value cache",
    "past_kv_cache": "every call is a whole pass, without a key-value cache",
    "input_ids": "tokens are the first argument",
    "pixel_values": "pixels are the first argument",
    "encoder_hidden_states": "cross-attention is not supported",
    "encoder_attention_mask": "cross-attention is not supported",
}


def check_arguments(module: Any, given: Mapping[str, Any]) -> None:
    """Refuse what the module's `forward` would pass over in silence.

    Raises:
        ConfigError: a name that `forward` does not list, or that is done another way (the message says which).
    """
    if not given:
        return
    known = inspect.signature(uncompiled(module).forward).parameters.values()
    names = [p.name for p in known if p.kind is not p.VAR_KEYWORD and p.name not in ADVICE]
    for name in given:
        if name in ADVICE:
            raise ConfigError(f"the argument '{name}' is not taken; {ADVICE[name]}")
        if name not in names:
            raise ConfigError(f"unknown argument '{name}'{nearest(name, names)}; taken are {', '.join(names)}")


def padded_positions(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """`position_ids` of rows padded on the left, counted from the first token; nothing where none is.

    Args:
        given: keyword arguments of the call; `attention_mask` is [B, T], 0 = padding.
    """
    mask = given.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or "position_ids" in given or bool(mask[:, 0].all()):
        return {}
    before = (mask != 0).int().argmax(1, keepdim=True)  # columns in front of the first token
    return {"position_ids": (mask.new_ones(mask.shape).long().cumsum(1) - 1 - before).clamp(min=0)}


def check_ids(tokens: Tensor, n_rows: int, name: str, tokenizer: Any) -> None:
    """Refuse token ids that a model's embedding of `n_rows` does not have.

    Raises:
        ConfigError: names the id, and what it is in the tokenizer; or there are no tokens.
    """
    if not tokens.numel():
        raise ConfigError(f"there are no tokens ({list(tokens.shape)}); give at least one")
    low, high = (int(x) for x in tokens.aminmax())
    if low < 0 or high >= n_rows:
        odd = low if low < 0 else high
        more = (
            f"; its tokenizer has {len(tokenizer)}, {odd} is {token_texts(tokenizer, [odd])[0]!r}"
            if tokenizer is not None
            else ""
        )
        raise ConfigError(
            f"token id {odd} is outside the embedding of {name} ({n_rows} tokens{more}); "
            "give the tokenizer the model was trained with"
        )
