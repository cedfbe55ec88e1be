"""How little attention, MLPs, blocks and heads change, and what it costs to lose them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.redundancy.config import RedundancyConfig
    from attlas.analyses.redundancy.heads import HeadEffectsConfig, HeadEffectsResult, head_effects
    from attlas.analyses.redundancy.modules import ModuleEffectsResult, module_effects
    from attlas.analyses.redundancy.scores import RedundancyResult, redundancy
    from attlas.analyses.redundancy.timeline import RedundancyTimelineResult, redundancy_timeline

_PUBLIC = {
    "HeadEffectsConfig": "heads",
    "HeadEffectsResult": "heads",
    "ModuleEffectsResult": "modules",
    "RedundancyConfig": "config",
    "RedundancyResult": "scores",
    "RedundancyTimelineResult": "timeline",
    "head_effects": "heads",
    "module_effects": "modules",
    "redundancy": "scores",
    "redundancy_timeline": "timeline",
}

__all__ = [
    "HeadEffectsConfig",
    "HeadEffectsResult",
    "ModuleEffectsResult",
    "RedundancyConfig",
    "RedundancyResult",
    "RedundancyTimelineResult",
    "head_effects",
    "module_effects",
    "redundancy",
    "redundancy_timeline",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
