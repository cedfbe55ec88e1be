"""What tests of the tracker share: inputs of a model, a loss, the entropy of a map, and how many hooks there are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attlas.interp import HookedModel


def inputs_of(model: HookedModel, n: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if model.cfg.family == "vit":
        return {"pixel_values": torch.randn(n, 1, 32, 32, generator=generator)}
    return {"input_ids": torch.randint(1, model.cfg.d_vocab, (n, 24), generator=generator)}


def loss_of(hf: Any, inputs: dict[str, Tensor]) -> Tensor:
    return hf(**inputs).logits.float().pow(2).mean()


def entropy_of(pattern: Tensor) -> Tensor:
    return -torch.special.xlogy(pattern, pattern).sum(-1)


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
