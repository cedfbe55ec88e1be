"""Attention inside a training loop: a tracker of entropy with alerts, and σ-reparametrisation.

Zhai et al. 2023, arXiv 2303.06296.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.stability.alerts import Alert, AlertConfig
    from attlas.analyses.stability.callbacks import lightning_callback, trainer_callback
    from attlas.analyses.stability.collapse import CollapseResult, collapse_demo
    from attlas.analyses.stability.config import CollapseConfig
    from attlas.analyses.stability.layer import AttentionLayer
    from attlas.analyses.stability.reparam import merge_sigma, sigma_reparam
    from attlas.analyses.stability.tracker import EntropyTracker, TrackerConfig

_PUBLIC = {
    "Alert": "alerts",
    "AlertConfig": "alerts",
    "AttentionLayer": "layer",
    "CollapseConfig": "config",
    "CollapseResult": "collapse",
    "EntropyTracker": "tracker",
    "TrackerConfig": "tracker",
    "collapse_demo": "collapse",
    "lightning_callback": "callbacks",
    "merge_sigma": "reparam",
    "sigma_reparam": "reparam",
    "trainer_callback": "callbacks",
}

__all__ = [
    "Alert",
    "AlertConfig",
    "AttentionLayer",
    "CollapseConfig",
    "CollapseResult",
    "EntropyTracker",
    "TrackerConfig",
    "collapse_demo",
    "lightning_callback",
    "merge_sigma",
    "sigma_reparam",
    "trainer_callback",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
