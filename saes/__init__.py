"""Sparse autoencoders on attention outputs: architectures, training, evaluation, interchange."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.saes.architectures import ARCHITECTURES
    from attlas.saes.base import SAE
    from attlas.saes.config import SAEConfig
    from attlas.saes.evaluation.config import EvalConfig
    from attlas.saes.evaluation.measure import EvalResult, evaluate, evaluate_all
    from attlas.saes.formats import load_sae
    from attlas.saes.inputs import held_out
    from attlas.saes.scaling.plan import plan
    from attlas.saes.training.config import TrainConfig
    from attlas.saes.training.result import TrainedSAE, TrainResult
    from attlas.saes.training.sweep import SweepConfig, SweepResult, sweep_saes
    from attlas.saes.training.train import train_sae

_PUBLIC = {
    "ARCHITECTURES": "architectures",
    "SAE": "base",
    "EvalConfig": "evaluation.config",
    "EvalResult": "evaluation.measure",
    "SAEConfig": "config",
    "SweepConfig": "training.sweep",
    "SweepResult": "training.sweep",
    "TrainConfig": "training.config",
    "TrainResult": "training.result",
    "TrainedSAE": "training.result",
    "evaluate": "evaluation.measure",
    "evaluate_all": "evaluation.measure",
    "held_out": "inputs",
    "load_sae": "formats",
    "plan": "scaling.plan",
    "sweep_saes": "training.sweep",
    "train_sae": "training.train",
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
    "TrainedSAE",
    "evaluate",
    "evaluate_all",
    "held_out",
    "load_sae",
    "plan",
    "sweep_saes",
    "train_sae",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
