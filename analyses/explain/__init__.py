"""Labels of features and heads by a language model, and how well they tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.explain.asking import Asker
    from attlas.analyses.explain.config import ExplainConfig
    from attlas.analyses.explain.endpoint import Endpoint
    from attlas.analyses.explain.explainer import Explainer, LocalExplainer, Reply
    from attlas.analyses.explain.labels import ExplanationsResult, explain, explain_heads
    from attlas.analyses.explain.prompts import Prompt

_PUBLIC = {
    "Asker": "asking",
    "Endpoint": "endpoint",
    "ExplainConfig": "config",
    "Explainer": "explainer",
    "ExplanationsResult": "labels",
    "LocalExplainer": "explainer",
    "Prompt": "prompts",
    "Reply": "explainer",
    "explain": "labels",
    "explain_heads": "labels",
}

__all__ = [
    "Asker",
    "Endpoint",
    "ExplainConfig",
    "Explainer",
    "ExplanationsResult",
    "LocalExplainer",
    "Prompt",
    "Reply",
    "explain",
    "explain_heads",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
