"""Sparse autoencoders on attention outputs: architectures, training, evaluation, interchange."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attlas.saes.architectures import ARCHITECTURES
    from attlas.saes.base import SAE
    from attlas.saes.config import SAEConfig
    from attlas.saes.evaluation import EvalConfig, EvalResult, evaluate, evaluate_all
    from attlas.saes.formats import load_sae
    from attlas.saes.sources import held_out
    from attlas.saes.sweep import SweepConfig, SweepResult, sweep_saes
    from attlas.saes.train import TrainConfig, TrainResult, train_sae

_PUBLIC = {
    "ARCHITECTURES": "architectures",
    "SAE": "base",
    "SAEConfig": "config",
    "EvalConfig": "evaluation",
    "EvalResult": "evaluation",
    "evaluate": "evaluation",
    "evaluate_all": "evaluation",
    "held_out": "sources",
    "load_sae": "formats",
    "SweepConfig": "sweep",
    "SweepResult": "sweep",
    "sweep_saes": "sweep",
    "TrainConfig": "train",
    "TrainResult": "train",
    "train_sae": "train",
}

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "EvalConfig",
    "EvalResult",
    "SAEConfig",
    "SweepConfig",
    "SweepResult",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "evaluate_all",
    "held_out",
    "load_sae",
    "sweep_saes",
    "train_sae",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"attlas.saes.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'attlas.saes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
