"""Every head of a model over a corpus: scores, an account of its mass, and the sequences that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.heads.atlas import HeadAtlas, head_atlas
    from attlas.analyses.heads.config import HeadsConfig
    from attlas.analyses.heads.headvis import save_headvis
    from attlas.analyses.heads.headvis_read import HeadVisTree, load_headvis

_PUBLIC = {
    "HeadAtlas": "atlas",
    "HeadVisTree": "headvis_read",
    "HeadsConfig": "config",
    "head_atlas": "atlas",
    "load_headvis": "headvis_read",
    "save_headvis": "headvis",
}

__all__ = [
    "HeadAtlas",
    "HeadVisTree",
    "HeadsConfig",
    "head_atlas",
    "load_headvis",
    "save_headvis",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
