"""Circuits: patching, direct logit attribution, traces, QK attribution, faithfulness, and the tasks they run on.

The names of the modules circuit_*.py in one place: `from attlas.analyses import circuits`.
"""

from __future__ import annotations

from attlas.analyses.circuit_ablation import AblationResult, ablate
from attlas.analyses.circuit_attention import AttentionConfig, explain_attention
from attlas.analyses.circuit_dla import DLAConfig, DLAResult, dla
from attlas.analyses.circuit_faithfulness import FaithfulnessConfig, FaithfulnessResult, faithfulness
from attlas.analyses.circuit_frozen import FrozenPass, Part, parse_part
from attlas.analyses.circuit_graph import CircuitGraph, Edge, Node
from attlas.analyses.circuit_graph_files import load_json, save_circuit_tracer, save_graphml, save_json
from attlas.analyses.circuit_metrics import CrossEntropy, KLDivergence, LogitDifference, ProbabilityDifference
from attlas.analyses.circuit_patching import PatchingConfig, PatchingResult, patching
from attlas.analyses.circuit_prompts import task_from_prompts
from attlas.analyses.circuit_qk import QKConfig, QKResult, key_contrast, qk_attribution
from attlas.analyses.circuit_sites import Site
from attlas.analyses.circuit_tasks import Task, TaskConfig, make_task, require_ability, score_task, task_names
from attlas.analyses.circuit_trace import FeatureTarget, LogitTarget, TraceConfig, direct_attribution, trace

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
