"""Every head of a model over a corpus: scores, an account of its mass, and the sequences that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.heads.atlas import HeadAtlas, head_atlas
    from attlas.analyses.heads.config import HeadsConfig

_PUBLIC = {
    "HeadAtlas": "atlas",
    "HeadsConfig": "config",
    "head_atlas": "atlas",
}

__all__ = [
    "HeadAtlas",
    "HeadsConfig",
    "head_atlas",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
