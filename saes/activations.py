"""Activations of chosen hooks as rows of tokens: {hook: [N, D]}, heads concatenated, checked for NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attlas.errors import ConfigError, NonFiniteError
from attlas.interp.names import match_hooks
from attlas.saes.positions import Positions

if TYPE_CHECKING:
    from attlas.interp import HookedModel

Rows = dict[str, Tensor]
EVERYWHERE = Positions()


def vector_hooks(model: HookedModel, patterns: Sequence[str], *, heads_apart: bool = False) -> tuple[str, ...]:
    """`match_hooks`, refusing hooks that hold no vector a token.

    Args:
        heads_apart: take attn.hook_result too, n_heads × d_model numbers a token.

    Raises:
        HookNameError, LayerRangeError: a pattern matches nothing.
        ConfigError: a hook has no activation vector a token (attention scores and patterns), or it is hook_result, of which
            hook_z holds all there is.
    """
    found = match_hooks(patterns, model.hook_names())
    for name in found:
        if name.endswith(("hook_pattern", "hook_attn_scores", "hook_scale")):
            raise ConfigError(f"'{name}' holds no vector a token; train on hook_z, hook_attn_out, or a residual hook")
        if name.endswith("hook_result") and not heads_apart:
            raise ConfigError(
                f"'{name}' is hook_z · W_O, {model.cfg.n_heads} × {model.cfg.d_model} numbers a token of "
                f"{model.cfg.n_heads} × {model.cfg.d_head}; train on {name.replace('hook_result', 'hook_z')}"
            )
    return found


def flat_rows(activation: Tensor) -> Tensor:
    """[B, T, D] or [B, T, heads, d_head] → [B·T, D]."""
    return activation.flatten(2).flatten(0, 1) if activation.ndim == 4 else activation.flatten(0, 1)


@torch.no_grad()
def capture_rows(
    model: HookedModel,
    inputs: Tensor,
    hooks: Sequence[str],
    positions: Positions = EVERYWHERE,
    text: Tensor | None = None,
) -> Rows:
    """One forward pass, which stops after the last layer needed.

    Args:
        model: the model.
        inputs: tokens [B, T] or pixels [B, C, H, W].
        hooks: hook names.
        positions: which positions to take.
        text: bool [B, T], False in padding, which is never taken; None where there is none.

    Raises:
        NonFiniteError: an activation is NaN or infinite; the layer and hook are named.
    """
    inputs = inputs.to(model.device)
    cache = model.capture(inputs, list(hooks))
    rows: Rows = {}
    for hook in hooks:
        x = flat_rows(cache[hook])
        if text is not None or not positions.everything:
            x = x[positions.mask(inputs, cache[hook].shape[1], text).flatten()]
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError(f"'{hook}' of '{model.name}' holds NaN or infinity; load the model in float32")
        rows[hook] = x
    return rows


def head_shape(model: HookedModel, hook: str) -> tuple[int | None, int | None]:
    """(heads, d_head) of a `hook_z`, (None, None) of any other hook."""
    if hook.endswith("hook_z"):
        return model.cfg.n_heads, model.cfg.d_head
    return None, None
