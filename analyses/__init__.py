"""What heads, layers and sparse features do: one folder a subject, each with a public face, loaded on first use.

An analysis has a frozen `…Config`, one function, and a result with `.tables()`, `.plot()`, `.summary()` and
`.save(workspace)`: `from attlas.analyses.pruning import DropCurveConfig, drop_curve`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["attention", "circuits", "common", "features", "heads", "pruning", "redundancy", "stability", "tasks", "vit"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"attlas.analyses.{name}")
    raise AttributeError(f"module 'attlas.analyses' has no attribute {name!r}")
