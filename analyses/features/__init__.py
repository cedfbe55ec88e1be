"""What features of sparse autoencoders are: examples, families, heads, neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.features.config import FeaturesConfig, HeadSurveyConfig, MatchingConfig
    from attlas.analyses.features.describe import FeaturesResult, features
    from attlas.analyses.features.firing import Firing, firing
    from attlas.analyses.features.logits import logit_effects
    from attlas.analyses.features.matching import MatchingResult, sae_matching
    from attlas.analyses.features.shares import head_shares
    from attlas.analyses.features.survey import HeadSurveyResult, head_survey

_PUBLIC = {
    "FeaturesConfig": "config",
    "FeaturesResult": "describe",
    "Firing": "firing",
    "HeadSurveyConfig": "config",
    "HeadSurveyResult": "survey",
    "MatchingConfig": "config",
    "MatchingResult": "matching",
    "features": "describe",
    "firing": "firing",
    "head_shares": "shares",
    "head_survey": "survey",
    "logit_effects": "logits",
    "sae_matching": "matching",
}

__all__ = [
    "FeaturesConfig",
    "FeaturesResult",
    "Firing",
    "HeadSurveyConfig",
    "HeadSurveyResult",
    "MatchingConfig",
    "MatchingResult",
    "features",
    "firing",
    "head_shares",
    "head_survey",
    "logit_effects",
    "sae_matching",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
