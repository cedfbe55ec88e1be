"""Model adapters, hook names, capture and interventions."""

from attlas.interp.attended import Attended, attended
from attlas.interp.config import ModelConfig
from attlas.interp.load import AnyModel, as_hooked, load_model
from attlas.interp.model import Cache, HookedModel, require_finite

__all__ = [
    "AnyModel",
    "Attended",
    "Cache",
    "HookedModel",
    "ModelConfig",
    "as_hooked",
    "attended",
    "load_model",
    "require_finite",
]
