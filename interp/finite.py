"""Activations that are not finite, found early and named by layer and hook."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attlas.errors import NonFiniteError
from attlas.interp.names import layer_of


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, by their sum where that decides; tensors inside a transform are let through."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    tensor = tensor.detach()
    total = tensor.sum(dtype=torch.float32 if tensor.element_size() < 4 else None)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def require_finite(cache: Mapping[str, Tensor]) -> None:
    """Raise on the first activation that holds NaN or infinity.

    Raises:
        NonFiniteError: names layer and hook and how many values are bad. Masked scores (−inf) are allowed.

    Example:
        >>> from attlas.interp import require_finite
        >>> require_finite(model.capture(text.tokens, "blocks.0.attn.hook_z"))
        >>> require_finite({"blocks.0.attn.hook_z": torch.tensor([1.0, float("nan")])})
        Traceback (most recent call last):
            ...
        attlas.errors.NonFiniteError: layer 0, hook 'blocks.0.attn.hook_z': 1 of 2 values are NaN or infinite; ...
    """
    for name, tensor in cache.items():
        if name.endswith("hook_attn_scores") or is_finite(tensor):
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            layer = layer_of(name)
            where = f"layer {layer}, " if layer is not None else ""
            raise NonFiniteError(
                f"{where}hook '{name}': {bad} of {tensor.numel()} values are NaN or infinite; check weights, use float32"
            )
