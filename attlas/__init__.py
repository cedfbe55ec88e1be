"""Attlas, an atlas of attention: what the heads, layers and sparse features of GPT-2, Llama and ViT models do.

The names below are the public interface. They are loaded on first use, so that `import attlas` is instant.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas._version import __version__

# In a source checkout the rooms (data/, interp/, …) lie beside this folder, not in it. When the checkout's root
# comes first on sys.path, an installed mapping is never consulted; this makes `attlas.data` resolve all the same.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "interp").is_dir():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from attlas import analyses
    from attlas.analyses.stability.reparam import sigma_reparam
    from attlas.analyses.stability.tracker import EntropyTracker
    from attlas.dashboard.as_file import show
    from attlas.data.workspace import Workspace
    from attlas.interp import HookedModel, load_model
    from attlas.saes import SAE, load_sae, train_sae

_PUBLIC = {
    "load_model": "attlas.interp",
    "HookedModel": "attlas.interp",
    "load_sae": "attlas.saes",
    "train_sae": "attlas.saes",
    "SAE": "attlas.saes",
    "Workspace": "attlas.data.workspace",
    "EntropyTracker": "attlas.analyses.stability.tracker",
    "sigma_reparam": "attlas.analyses.stability.reparam",
    "show": "attlas.dashboard.as_file",
}
_ROOMS = ("data", "kernels", "interp", "saes", "analyses", "dashboard")

__all__ = [
    "SAE",
    "EntropyTracker",
    "HookedModel",
    "Workspace",
    "__version__",
    "analyses",
    "load_model",
    "load_sae",
    "show",
    "sigma_reparam",
    "train_sae",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"attlas.{name}")
    raise AttributeError(f"module 'attlas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PUBLIC, *_ROOMS})
