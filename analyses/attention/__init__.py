"""What heads attend to, measured after training: entropy, distances, windows, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.attention.anatomy import AnatomyResult, map_anatomy
    from attlas.analyses.attention.config import (
        AnatomyConfig,
        CostConfig,
        EntropyConfig,
        SelectionConfig,
        TimelineConfig,
        WindowConfig,
    )
    from attlas.analyses.attention.cost import CostResult, cost_profile
    from attlas.analyses.attention.head_entropy import EntropyResult, entropy
    from attlas.analyses.attention.head_timeline import TimelineResult, timeline
    from attlas.analyses.attention.selection import SelectionResult, selection_layers
    from attlas.analyses.attention.windows import WindowResult, window_loss

_PUBLIC = {
    "AnatomyConfig": "config",
    "AnatomyResult": "anatomy",
    "CostConfig": "config",
    "CostResult": "cost",
    "EntropyConfig": "config",
    "EntropyResult": "head_entropy",
    "SelectionConfig": "config",
    "SelectionResult": "selection",
    "TimelineConfig": "config",
    "TimelineResult": "head_timeline",
    "WindowConfig": "config",
    "WindowResult": "windows",
    "cost_profile": "cost",
    "entropy": "head_entropy",
    "map_anatomy": "anatomy",
    "selection_layers": "selection",
    "timeline": "head_timeline",
    "window_loss": "windows",
}

__all__ = [
    "AnatomyConfig",
    "AnatomyResult",
    "CostConfig",
    "CostResult",
    "EntropyConfig",
    "EntropyResult",
    "SelectionConfig",
    "SelectionResult",
    "TimelineConfig",
    "TimelineResult",
    "WindowConfig",
    "WindowResult",
    "cost_profile",
    "entropy",
    "map_anatomy",
    "selection_layers",
    "timeline",
    "window_loss",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
