"""Vision transformers: importance of heads, patterns, token removal, one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.vit.config import VitConfig, VitPatternsConfig, VitPruningConfig, VitTokensConfig
    from attlas.analyses.vit.heads import VitResult, vit
    from attlas.analyses.vit.one_image import FeatureHeat, ImageAttention, feature_heat, image_attention
    from attlas.analyses.vit.patterns.run import VitPatternsResult, vit_patterns
    from attlas.analyses.vit.pruning import VitPruningResult, vit_pruning
    from attlas.analyses.vit.tokens.run import VitTokensResult, vit_tokens

_PUBLIC = {
    "FeatureHeat": "one_image",
    "ImageAttention": "one_image",
    "VitConfig": "config",
    "VitPatternsConfig": "config",
    "VitPatternsResult": "patterns.run",
    "VitPruningConfig": "config",
    "VitPruningResult": "pruning",
    "VitResult": "heads",
    "VitTokensConfig": "config",
    "VitTokensResult": "tokens.run",
    "feature_heat": "one_image",
    "image_attention": "one_image",
    "vit": "heads",
    "vit_patterns": "patterns.run",
    "vit_pruning": "pruning",
    "vit_tokens": "tokens.run",
}

__all__ = [
    "FeatureHeat",
    "ImageAttention",
    "VitConfig",
    "VitPatternsConfig",
    "VitPatternsResult",
    "VitPruningConfig",
    "VitPruningResult",
    "VitResult",
    "VitTokensConfig",
    "VitTokensResult",
    "feature_heat",
    "image_attention",
    "vit",
    "vit_patterns",
    "vit_pruning",
    "vit_tokens",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
