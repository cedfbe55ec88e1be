"""Random prompts and autoencoders that tests of circuits share, as fixtures that are functions."""

from __future__ import annotations

from typing import Protocol

import pytest
import torch

from attlas.analyses.tasks.task import Task
from attlas.interp import HookedModel
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig


def _task(d_vocab: int = 101, n: int = 3, length: int = 9) -> Task:
    draw = torch.Generator().manual_seed(5)
    clean, other = (torch.randint(d_vocab, (n, length), generator=draw) for _ in range(2))
    right, wrong = (torch.randint(d_vocab, (n, 2), generator=draw) for _ in range(2))
    right[0, 1] = -1
    return Task("random", clean, other, right, wrong, torch.tensor([length - 1, 4, length - 1]))


def _sae(model: HookedModel, layer: int, hook: str = "attn.hook_z", k: int = 8) -> SAE:
    cfg = model.cfg
    z = hook.endswith("hook_z")
    width = cfg.n_heads * cfg.d_head if z else cfg.d_model
    config = SAEConfig(
        arch="topk",
        d_in=width,
        d_sae=3 * width,
        k=k,
        hook_name=f"blocks.{layer}.{hook}",
        model_name=model.name,
        model_hash=model.weight_hash,
        n_heads=cfg.n_heads if z else None,
        d_head=cfg.d_head if z else None,
    )
    sae = create_sae(config)
    draw = torch.Generator().manual_seed(layer)
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(3 * width, width, generator=draw), dim=-1))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(0.05 * torch.randn(width, generator=draw))
        sae.b_enc.copy_(0.05 * torch.randn(3 * width, generator=draw))
    return sae


class TaskMaker(Protocol):
    def __call__(self, d_vocab: int = 101, n: int = 3, length: int = 9) -> Task: ...


class SAEMaker(Protocol):
    def __call__(self, model: HookedModel, layer: int, hook: str = "attn.hook_z", k: int = 8) -> SAE: ...


@pytest.fixture(scope="session")
def random_task() -> TaskMaker:
    return _task


@pytest.fixture(scope="session")
def random_sae() -> SAEMaker:
    return _sae
