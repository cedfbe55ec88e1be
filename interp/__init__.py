"""Model adapters, hook names, capture and interventions."""

from attlas.interp.config import ModelConfig
from attlas.interp.load import load_model
from attlas.interp.model import Cache, HookedModel, require_finite

__all__ = ["Cache", "HookedModel", "ModelConfig", "load_model", "require_finite"]
