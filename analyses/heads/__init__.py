"""Every head of a model over a corpus: scores, an account of its mass, and the sequences that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.heads.atlas import HeadAtlas, head_atlas
    from attlas.analyses.heads.config import HeadsConfig, LogitsConfig, ProjectConfig, SimilarConfig
    from attlas.analyses.heads.gallery import text_edges
    from attlas.analyses.heads.headvis import save_headvis
    from attlas.analyses.heads.headvis_read import HeadVisTree, load_headvis
    from attlas.analyses.heads.logits import HeadLogits, head_logits
    from attlas.analyses.heads.projections import HeadProjections, head_projections
    from attlas.analyses.heads.similar import SimilarHeads, similar_heads
    from attlas.analyses.heads.weight_config import WeightsConfig
    from attlas.analyses.heads.weights import HeadWeights, head_weights

_PUBLIC = {
    "HeadAtlas": "atlas",
    "HeadLogits": "logits",
    "HeadProjections": "projections",
    "HeadVisTree": "headvis_read",
    "HeadWeights": "weights",
    "HeadsConfig": "config",
    "LogitsConfig": "config",
    "ProjectConfig": "config",
    "SimilarConfig": "config",
    "SimilarHeads": "similar",
    "WeightsConfig": "weight_config",
    "head_atlas": "atlas",
    "head_logits": "logits",
    "head_projections": "projections",
    "head_weights": "weights",
    "load_headvis": "headvis_read",
    "save_headvis": "headvis",
    "similar_heads": "similar",
    "text_edges": "gallery",
}

__all__ = [
    "HeadAtlas",
    "HeadLogits",
    "HeadProjections",
    "HeadVisTree",
    "HeadWeights",
    "HeadsConfig",
    "LogitsConfig",
    "ProjectConfig",
    "SimilarConfig",
    "SimilarHeads",
    "WeightsConfig",
    "head_atlas",
    "head_logits",
    "head_projections",
    "head_weights",
    "load_headvis",
    "save_headvis",
    "similar_heads",
    "text_edges",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
