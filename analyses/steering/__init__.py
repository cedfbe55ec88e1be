"""What a model writes while features or heads are raised, set or taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.steering.config import SteerConfig
    from attlas.analyses.steering.run import Steered, SteeringResult, steer

_PUBLIC = {"SteerConfig": "config", "Steered": "run", "SteeringResult": "run", "steer": "run"}

__all__ = ["SteerConfig", "Steered", "SteeringResult", "steer"]

__getattr__, __dir__ = face(__name__, _PUBLIC)
