"""Public faces of packages whose names are loaded on first use, so that naming one analysis does not import all."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def face(package: str, public: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that hands out names of its modules.

    Args:
        package: the package's `__name__`.
        public: name -> module that defines it, inside the package (`"curve"`) or anywhere (`"attlas.interp.drop"`).

    Example:
        >>> getter, _ = face("attlas.data", {"Track": "progress"})
        >>> getter("Track").__module__
        'attlas.data.progress'
    """

    def load(name: str) -> Any:
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = public[name]
        return getattr(importlib.import_module(module if module.startswith("attlas.") else f"{package}.{module}"), name)

    return load, lambda: sorted(public)
