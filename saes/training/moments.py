"""Adam's moments in a checkpoint, as the fused step keeps them and as `torch.optim.Adam` does: one made of the other.

So a training that several processes began, whose gradients pass through autograd, goes on with the fused step on one.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def as_adam(tensors: dict[str, Tensor], trainer: str) -> dict[str, Tensor]:
    """`trainer/adam/…` made of `trainer/fused/…`; empty where there is none.

    Example:
        >>> from attlas.saes.training.moments import as_adam, as_fused
        >>> kept = {"a/fused/exp_avg/encoder": torch.zeros(8, 2), "a/fused/n_steps": torch.tensor(3)}
        >>> {name: tuple(tensor.shape) for name, tensor in as_adam(kept, "a").items()}
        {'a/adam/W_enc/exp_avg': (2, 8), 'a/adam/W_enc/step': ()}
        >>> list(as_fused(as_adam(kept, "a"), "a"))
        ['a/fused/exp_avg/encoder', 'a/fused/n_steps']
    """
    prefix, found = f"{trainer}/fused/", {}
    for key, tensor in tensors.items():
        kind, _, name = key.removeprefix(prefix).partition("/")
        if key.startswith(prefix) and kind in MOMENTS:
            turned = name == "encoder"  # stored by feature there
            parameter = "W_enc" if turned else name
            found[f"{trainer}/adam/{parameter}/{kind}"] = tensor.t().contiguous() if turned else tensor
            found[f"{trainer}/adam/{parameter}/step"] = tensors[f"{prefix}n_steps"].to(torch.float32)
    return found


def as_fused(tensors: dict[str, Tensor], trainer: str) -> dict[str, Tensor]:
    """`trainer/fused/…` made of `trainer/adam/…`; empty where there is none."""
    prefix, found = f"{trainer}/adam/", {}
    steps = torch.tensor(0)
    for key, tensor in tensors.items():
        if not key.startswith(prefix):
            continue
        parameter, _, kind = key.removeprefix(prefix).partition("/")
        if kind == "step":
            steps = tensor.to(torch.int64).reshape(())
        else:
            turned = parameter == "W_enc"
            found[f"{trainer}/fused/{kind}/{'encoder' if turned else parameter}"] = (
                tensor.t().contiguous() if turned else tensor
            )
    return found | ({f"{trainer}/fused/n_steps": steps} if found else {})
