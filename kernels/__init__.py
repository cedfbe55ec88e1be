"""Kernels: one operation a file, a torch path and a Triton path each, one public function that picks."""

from __future__ import annotations

from attlas.kernels.attention_rule import AttentionRule
from attlas.kernels.attention_stats import attention_stats
from attlas.kernels.feature_dfa import FeatureDFA, feature_dfa
from attlas.kernels.results import AttentionStats, SparseCodes
from attlas.kernels.sparse_decode import sparse_decode, sparse_decode_prefixes
from attlas.kernels.step_options import StepOptions
from attlas.kernels.threshold_encode import batch_topk_encode, threshold_encode
from attlas.kernels.topk_encode import SelectDtype, topk_encode
from attlas.kernels.topk_step import TopKStep, TopKStepResult
from attlas.kernels.topk_torch import topk_rows

__all__ = [
    "AttentionRule",
    "AttentionStats",
    "FeatureDFA",
    "SelectDtype",
    "SparseCodes",
    "StepOptions",
    "TopKStep",
    "TopKStepResult",
    "attention_stats",
    "batch_topk_encode",
    "feature_dfa",
    "sparse_decode",
    "sparse_decode_prefixes",
    "threshold_encode",
    "topk_encode",
    "topk_rows",
]
