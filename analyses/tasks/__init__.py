"""Prompts with known answers, what counts as solving them, and how a model does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attlas.lazy import face

if TYPE_CHECKING:
    from attlas.analyses.tasks.catalog import TaskScore, make_task, require_ability, score_task, task_names
    from attlas.analyses.tasks.metrics import CrossEntropy, KLDivergence, LogitDifference, ProbabilityDifference
    from attlas.analyses.tasks.prompts import task_from_prompts
    from attlas.analyses.tasks.task import Task, TaskConfig

_PUBLIC = {
    "CrossEntropy": "metrics",
    "KLDivergence": "metrics",
    "LogitDifference": "metrics",
    "ProbabilityDifference": "metrics",
    "Task": "task",
    "TaskConfig": "task",
    "TaskScore": "catalog",
    "make_task": "catalog",
    "require_ability": "catalog",
    "score_task": "catalog",
    "task_from_prompts": "prompts",
    "task_names": "catalog",
}

__all__ = [
    "CrossEntropy",
    "KLDivergence",
    "LogitDifference",
    "ProbabilityDifference",
    "Task",
    "TaskConfig",
    "TaskScore",
    "make_task",
    "require_ability",
    "score_task",
    "task_from_prompts",
    "task_names",
]

__getattr__, __dir__ = face(__name__, _PUBLIC)
