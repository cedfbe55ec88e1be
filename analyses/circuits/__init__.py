"""Circuits: patching, direct logit attribution, traces, QK attribution, faithfulness, and the tasks they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.circuits.ablation import AblationResult, ablate
    from attlas.analyses.circuits.activation_patching import PatchingResult, patching
    from attlas.analyses.circuits.attention import AttentionConfig, explain_attention
    from attlas.analyses.circuits.config import DLAConfig, PatchingConfig, TraceConfig
    from attlas.analyses.circuits.frozen import FrozenPass, Part, parse_part
    from attlas.analyses.circuits.graph import CircuitGraph, load_json
    from attlas.analyses.circuits.graph_files import save_circuit_tracer, save_graphml, save_json
    from attlas.analyses.circuits.logit_attribution import DLAResult, dla
    from attlas.analyses.circuits.nodes import Edge, Node
    from attlas.analyses.circuits.qk import QKConfig, QKResult, key_contrast, qk_attribution
    from attlas.analyses.circuits.sites import Site
    from attlas.analyses.circuits.terms import FeatureTarget, LogitTarget, direct_attribution
    from attlas.analyses.circuits.tracing import trace
    from attlas.analyses.circuits.validation import FaithfulnessConfig, FaithfulnessResult, faithfulness
    from attlas.analyses.tasks.catalog import make_task, require_ability, score_task, task_names
    from attlas.analyses.tasks.metrics import CrossEntropy, KLDivergence, LogitDifference, ProbabilityDifference
    from attlas.analyses.tasks.prompts import task_from_prompts
    from attlas.analyses.tasks.task import Task, TaskConfig

_PUBLIC = {
    "AblationResult": "ablation",
    "AttentionConfig": "attention",
    "CircuitGraph": "graph",
    "CrossEntropy": "attlas.analyses.tasks.metrics",
    "DLAConfig": "config",
    "DLAResult": "logit_attribution",
    "Edge": "nodes",
    "FaithfulnessConfig": "validation",
    "FaithfulnessResult": "validation",
    "FeatureTarget": "terms",
    "FrozenPass": "frozen",
    "KLDivergence": "attlas.analyses.tasks.metrics",
    "LogitDifference": "attlas.analyses.tasks.metrics",
    "LogitTarget": "terms",
    "Node": "nodes",
    "Part": "frozen",
    "PatchingConfig": "config",
    "PatchingResult": "activation_patching",
    "ProbabilityDifference": "attlas.analyses.tasks.metrics",
    "QKConfig": "qk",
    "QKResult": "qk",
    "Site": "sites",
    "Task": "attlas.analyses.tasks.task",
    "TaskConfig": "attlas.analyses.tasks.task",
    "TraceConfig": "config",
    "ablate": "ablation",
    "direct_attribution": "terms",
    "dla": "logit_attribution",
    "explain_attention": "attention",
    "faithfulness": "validation",
    "key_contrast": "qk",
    "load_json": "graph",
    "make_task": "attlas.analyses.tasks.catalog",
    "parse_part": "frozen",
    "patching": "activation_patching",
    "qk_attribution": "qk",
    "require_ability": "attlas.analyses.tasks.catalog",
    "save_circuit_tracer": "graph_files",
    "save_graphml": "graph_files",
    "save_json": "graph_files",
    "score_task": "attlas.analyses.tasks.catalog",
    "task_from_prompts": "attlas.analyses.tasks.prompts",
    "task_names": "attlas.analyses.tasks.catalog",
    "trace": "tracing",
}

__all__ = [
    "AblationResult",
    "AttentionConfig",
    "CircuitGraph",
    "CrossEntropy",
    "DLAConfig",
    "DLAResult",
    "Edge",
    "FaithfulnessConfig",
    "FaithfulnessResult",
    "FeatureTarget",
    "FrozenPass",
    "KLDivergence",
    "LogitDifference",
    "LogitTarget",
    "Node",
    "Part",
    "PatchingConfig",
    "PatchingResult",
    "ProbabilityDifference",
    "QKConfig",
    "QKResult",
    "Site",
    "Task",
    "TaskConfig",
    "TraceConfig",
    "ablate",
    "direct_attribution",
    "dla",
    "explain_attention",
    "faithfulness",
    "key_contrast",
    "load_json",
    "make_task",
    "parse_part",
    "patching",
    "qk_attribution",
    "require_ability",
    "save_circuit_tracer",
    "save_graphml",
    "save_json",
    "score_task",
    "task_from_prompts",
    "task_names",
    "trace",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
