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
    from attlas.saes.lorsa.config import LorsaConfig
    from attlas.saes.lorsa.evaluate import LayerEval, evaluate_layer
    from attlas.saes.lorsa.files import load_lorsa, save_lorsa
    from attlas.saes.lorsa.model import Lorsa
    from attlas.saes.lorsa.train import TrainedLorsa, train_lorsa
    from attlas.saes.lorsa.training_config import LorsaTrainConfig
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
    "LayerEval": "lorsa.evaluate",
    "Lorsa": "lorsa.model",
    "LorsaConfig": "lorsa.config",
    "LorsaTrainConfig": "lorsa.training_config",
    "SAEConfig": "config",
    "SweepConfig": "training.sweep",
    "SweepResult": "training.sweep",
    "TrainConfig": "training.config",
    "TrainResult": "training.result",
    "TrainedLorsa": "lorsa.train",
    "TrainedSAE": "training.result",
    "evaluate": "evaluation.measure",
    "evaluate_all": "evaluation.measure",
    "evaluate_layer": "lorsa.evaluate",
    "held_out": "inputs",
    "load_lorsa": "lorsa.files",
    "load_sae": "formats",
    "plan": "scaling.plan",
    "save_lorsa": "lorsa.files",
    "sweep_saes": "training.sweep",
    "train_lorsa": "lorsa.train",
    "train_sae": "training.train",
}

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "EvalConfig",
    "EvalResult",
    "LayerEval",
    "Lorsa",
    "LorsaConfig",
    "LorsaTrainConfig",
    "SAEConfig",
    "SweepConfig",
    "SweepResult",
    "TrainConfig",
    "TrainResult",
    "TrainedLorsa",
    "TrainedSAE",
    "evaluate",
    "evaluate_all",
    "evaluate_layer",
    "held_out",
    "load_lorsa",
    "load_sae",
    "plan",
    "save_lorsa",
    "sweep_saes",
    "train_lorsa",
    "train_sae",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
