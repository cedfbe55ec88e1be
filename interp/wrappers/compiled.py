"""torch.compile and hooks: compiled code does not look at hooks that come later, so hooked passes run uncompiled."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any

import torch
from torch import nn


def uncompiled(module: Any) -> Any:
    """The module inside `torch.compile(module)`, or the module itself."""
    return getattr(module, "_orig_mod", module)


class Eager:
    """While at least one is on, all that torch.compile made runs uncompiled, parts and methods too.

    torch's stance is one for the process, so the ones that are on are counted. Without effect (and cost) where
    torch.compile was never called.
    """

    _lock = threading.Lock()
    _n_on = 0
    _stance: Any = None

    def __init__(self) -> None:
        self._on = False

    def set(self, on: bool) -> None:
        with Eager._lock:
            if on != self._on and (not on or "torch._dynamo" in sys.modules):
                Eager._n_on += 1 if on else -1
                self._on = on
            if Eager._n_on and Eager._stance is None:
                Eager._stance = torch.compiler.set_stance("force_eager")
            elif not Eager._n_on and Eager._stance is not None:
                Eager._stance.__exit__(None, None, None)
                Eager._stance = None

    def __enter__(self) -> None:
        self.set(True)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.set(False)


def has_hooks(module: nn.Module) -> bool:
    """Whether any submodule has forward hooks."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
