"""The tasks by name, and how well a model does one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from attlas.analyses.tasks.builders import BUILDERS
from attlas.analyses.tasks.metrics import at_positions
from attlas.analyses.tasks.task import TaskConfig
from attlas.data.stats import bootstrap_mean, count_mean, span
from attlas.errors import ConfigError, TaskError, nearest
from attlas.interp import AnyModel, as_hooked

if TYPE_CHECKING:
    from attlas.analyses.tasks.task import Task


@dataclass(frozen=True)
class TaskScore:
    """How well a model does a task.

    Attributes:
        accuracy: share of prompts whose metric is above 0 (right beats wrong; chance is about a half), with interval.
        top1: share of prompts whose most likely next token of all is a right one.
        metric: its mean, with a 95 % bootstrap interval over prompts.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    top1: float
    metric: float
    metric_low: float
    metric_high: float
    unit: str
    n_prompts: int


@torch.no_grad()
def score_task(model: AnyModel, task: Task, batch_size: int = 16, seed: int = 0) -> TaskScore:
    """The model's accuracy and mean metric on the clean prompts.

    Example:
        >>> from attlas.analyses.tasks import score_task
        >>> score = score_task(model, task)
        >>> 0 <= score.accuracy <= 1
        True
    """
    model = as_hooked(model)
    model.require_language_model()
    values, top = [], []
    for start in range(0, len(task), batch_size):
        part = task.take(slice(start, start + batch_size))
        logits = model(part.tokens)
        metric = part.metric_fn()
        values.append(metric(logits).double().cpu())
        best = at_positions(logits, part.positions).argmax(-1).cpu()
        top.append((best[:, None] == part.right.cpu()).any(1))
    value = torch.cat(values)
    accuracy, accuracy_low, accuracy_high = (float(x) for x in count_mean((value > 0).numpy()))
    mean, low, high = (float(x) for x in bootstrap_mean(value.numpy(), seed=seed))
    return TaskScore(
        accuracy=accuracy,
        accuracy_low=accuracy_low,
        accuracy_high=accuracy_high,
        top1=float(torch.cat(top).double().mean()),
        metric=mean,
        metric_low=low,
        metric_high=high,
        unit="logits" if task.metric == "logit" else "probability",
        n_prompts=len(task),
    )


def require_ability(model: AnyModel, task: Task, min_accuracy: float, batch_size: int = 16) -> TaskScore:
    """The model's score, or a refusal: a circuit for something a model cannot do is a story about noise.

    Raises:
        TaskError: the accuracy is below min_accuracy; says it, with its interval.

    Example:
        >>> from attlas.analyses.tasks import require_ability
        >>> require_ability(model, task, 0.0).accuracy >= 0
        True
    """
    model = as_hooked(model)
    score = score_task(model, task, batch_size)
    if score.accuracy < min_accuracy:
        raise TaskError(
            f"{model.name} cannot do '{task.name}': it is right on {score.accuracy:.0%} of {len(task)} prompts (95 % "
            f"interval {span(score.accuracy_low, score.accuracy_high, '.0%')}, asked for {min_accuracy:.0%}); use another "
            "model or task, or lower min_accuracy"
        )
    return score


def make_task(model: AnyModel, config: TaskConfig | None = None) -> Task:
    """Prompts of a task in the model's own tokens.

    Raises:
        ConfigError: there is no such task.
        TaskError: the tokenizer lacks one-token words for it.
        UnsupportedModelError: the model has no tokenizer.

    Example:
        >>> from attlas.analyses.tasks import TaskConfig, make_task
        >>> task = make_task(model, TaskConfig(task="induction", n_prompts=3, min_accuracy=0))
        >>> task.tokens.shape[0], task.right.shape[0]  # prompts
        (3, 3)
    """
    config = config or TaskConfig()
    if config.task not in BUILDERS:
        raise ConfigError(
            f"task '{config.task}' is unknown{nearest(config.task, BUILDERS)}; there are {', '.join(BUILDERS)}"
        )
    model = as_hooked(model)
    task = BUILDERS[config.task](model, config)
    if task.tokens.shape[1] > model.cfg.n_ctx:
        raise TaskError(
            f"'{task.name}' needs {task.tokens.shape[1]} tokens and the context window of {model.name} is "
            f"{model.cfg.n_ctx}; use another task"
        )
    return task


def task_names() -> tuple[str, ...]:
    """Names of all tasks.

    Example:
        >>> from attlas.analyses.tasks import task_names
        >>> task_names()[:2]
        ('ioi', 'induction')
    """
    return tuple(BUILDERS)
