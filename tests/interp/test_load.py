"""Opening modules and folders: what is kept, what is refused in one line."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from attlas.interp import load_model


def _gpt2(**changes: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{"vocab_size": 97, "n_embd": 24, "n_layer": 2, "n_head": 3, **changes}))


def test_a_module_in_memory_keeps_its_mode_and_may_hold_scalars() -> None:
    module = _gpt2().train()
    module.register_buffer("scale", torch.tensor(1.0))
    with pytest.warns(UserWarning, match="training mode, with dropout"):
        model = load_model(module)
    assert module.training
    first = model.weight_hash
    module.scale.fill_(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(module.eval()).weight_hash != first
    assert not module.training
