"""What heads, layers and sparse features do: one module an analysis, loaded on first use.

Each has a frozen `…Config`, one function, and a result with `.tables()`, `.plot()`, `.summary()` and `.save(workspace)`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["circuits", "entropy", "features", "prune", "redundancy", "vit"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"attlas.analyses.{name}")
    raise AttributeError(f"module 'attlas.analyses' has no attribute {name!r}")
