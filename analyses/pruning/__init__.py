"""Drop modules or heads: what it costs, which to choose, and a smaller checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.pruning.budget import Budget, Selection, select
    from attlas.analyses.pruning.checkpoint import Exported, export, load_pruned
    from attlas.analyses.pruning.curve import DropCurveResult, drop_curve
    from attlas.analyses.pruning.curve_config import DropCurveConfig
    from attlas.analyses.pruning.healing import HealConfig, HealResult, heal
    from attlas.analyses.pruning.orders import last_first, random_order, ranked
    from attlas.analyses.pruning.pipeline import PruneResult, prune
    from attlas.analyses.pruning.pipeline_config import PruneConfig
    from attlas.analyses.pruning.side_effects.behaviours import task_losses
    from attlas.analyses.pruning.side_effects.report import SideEffectsConfig, SideEffectsResult, drop_side_effects
    from attlas.analyses.pruning.surgery import build
    from attlas.interp.drop import Drop, masked, units

_PUBLIC = {
    "Budget": "budget",
    "Drop": "attlas.interp.drop",
    "DropCurveConfig": "curve_config",
    "DropCurveResult": "curve",
    "Exported": "checkpoint",
    "HealConfig": "healing",
    "HealResult": "healing",
    "PruneConfig": "pipeline_config",
    "PruneResult": "pipeline",
    "Selection": "budget",
    "SideEffectsConfig": "side_effects.report",
    "SideEffectsResult": "side_effects.report",
    "build": "surgery",
    "drop_curve": "curve",
    "export": "checkpoint",
    "heal": "healing",
    "last_first": "orders",
    "load_pruned": "checkpoint",
    "masked": "attlas.interp.drop",
    "prune": "pipeline",
    "random_order": "orders",
    "ranked": "orders",
    "select": "budget",
    "task_losses": "side_effects.behaviours",
    "units": "attlas.interp.drop",
    "drop_side_effects": "side_effects.report",
}

__all__ = [
    "Budget",
    "Drop",
    "DropCurveConfig",
    "DropCurveResult",
    "Exported",
    "HealConfig",
    "HealResult",
    "PruneConfig",
    "PruneResult",
    "Selection",
    "SideEffectsConfig",
    "SideEffectsResult",
    "build",
    "drop_curve",
    "drop_side_effects",
    "export",
    "heal",
    "last_first",
    "load_pruned",
    "masked",
    "prune",
    "random_order",
    "ranked",
    "select",
    "task_losses",
    "units",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
