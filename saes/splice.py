"""Put something else in a hook's place: an SAE's reconstruction, its features edited, zero, or a mean.

`with model.with_saes({hook: sae}): model(tokens)` runs a model on reconstructions; the functions here are for
`with model.hooks({hook: sae_hook(sae, edit=…)})`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attlas.interp.engine import HookFn
from attlas.interp.splice import with_error_term
from attlas.saes.base import SAE


def put_rows(rows_ND: Tensor, keep_BT: Tensor) -> HookFn:
    """A hook function that puts rows [N, D] in place at the N positions of bool [B, T], and leaves the others."""

    def hook(activation: Tensor, name: str) -> Tensor:
        changed = activation.clone(memory_format=torch.contiguous_format)
        changed.view(*keep_BT.shape, -1)[keep_BT] = rows_ND.to(changed.dtype)
        return changed

    return hook


def sae_hook(sae: SAE, use_error_term: bool = True, edit: Callable[[Tensor], Tensor] | None = None) -> HookFn:
    """The SAE's reconstruction in place of the activation.

    Args:
        sae: its features are x ↦ f.
        use_error_term: pass on x + (x̂(edit(f)) − x̂(f)): exactly x until features are changed, while gradients flow
            through the features alone.
        edit: changes features [..., F] before decoding, such as setting one to 0.
    """

    def hook(activation: Tensor, name: str) -> Tensor:
        if edit is None and not use_error_term:
            return sae(activation)
        x = sae.flatten_heads(activation)
        f = sae.encode(x)
        plain = sae.decode_like(f, x)
        changed = plain if edit is None else sae.decode_like(edit(f), x)
        out = with_error_term(x, changed, plain) if use_error_term else changed
        return out.reshape(activation.shape).to(activation.dtype)

    return hook
