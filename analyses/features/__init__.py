"""What features of sparse autoencoders are: examples, families, heads, neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.features.attribution import head_shares
    from attlas.analyses.features.config import FeaturesConfig, HeadSurveyConfig, MatchingConfig
    from attlas.analyses.features.describe import FeaturesResult, features
    from attlas.analyses.features.logits import logit_effects
    from attlas.analyses.features.lorsa.describe import LorsaFeatures, lorsa_features
    from attlas.analyses.features.matching import MatchingResult, sae_matching
    from attlas.analyses.features.on_text import Firing, firing
    from attlas.analyses.features.survey import HeadSurveyResult, head_survey

_PUBLIC = {
    "FeaturesConfig": "config",
    "FeaturesResult": "describe",
    "Firing": "on_text",
    "HeadSurveyConfig": "config",
    "HeadSurveyResult": "survey",
    "LorsaFeatures": "lorsa.describe",
    "MatchingConfig": "config",
    "MatchingResult": "matching",
    "features": "describe",
    "firing": "on_text",
    "head_shares": "attribution",
    "head_survey": "survey",
    "logit_effects": "logits",
    "lorsa_features": "lorsa.describe",
    "sae_matching": "matching",
}

__all__ = [
    "FeaturesConfig",
    "FeaturesResult",
    "Firing",
    "HeadSurveyConfig",
    "HeadSurveyResult",
    "LorsaFeatures",
    "MatchingConfig",
    "MatchingResult",
    "features",
    "firing",
    "head_shares",
    "head_survey",
    "logit_effects",
    "lorsa_features",
    "sae_matching",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
