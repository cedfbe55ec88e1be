"""Tasks with known answers: prompts, corrupted prompts of the same length, answers and a metric, for any tokenizer.

| task | prompt | right, wrong |
|---|---|---|
| ioi | When A and B went to the store, B gave a book to | A, B (Wang et al. 2022, arXiv 2211.00593) |
| induction | random tokens, twice | the token that followed before, another of the same prompt |
| induction-natural | held-out text in which a pair of tokens comes again | the same |
| greater-than | The war lasted from the year 1732 to the year 17 | later, earlier years (Hanna et al. 2023, 2305.00586) |
| docstring | def f(self, size, path, name): … :param size … :param path … :param | name, the other arguments |
| colour-objects | On the table there is a red pen, a blue cup … The colour of the cup is | blue, the other colours |
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attlas.analyses.tasks.metrics import LogitDifference, Metric, ProbabilityDifference, at_positions
from attlas.data.stats import bootstrap_mean, count_mean, span
from attlas.errors import ConfigError, TaskError, nearest
from attlas.interp import HookedModel


@dataclass(frozen=True)
class TaskConfig:
    """Which prompts to make.

    Attributes:
        task: one of TASKS.
        n_prompts: how many.
        variant: ioi: "abba" (the second name comes again), "baba" (the first), or "mixed"; other tasks have none.
        corruption: ioi: "abc" (three other names), "s2" (the repeated name becomes a third one), "swap" (it becomes the
            other one, so that the answer turns round); other tasks have one corruption only.
        seed: of the draw.
        min_accuracy: share of prompts a model must get right for its circuit to be worth asking for.
    """

    task: str = "ioi"
    n_prompts: int = 32
    variant: str = "mixed"
    corruption: str = "abc"
    seed: int = 0
    min_accuracy: float = 0.7

    def __post_init__(self) -> None:
        if self.n_prompts < 1:
            raise ConfigError(f"n_prompts {self.n_prompts} must be 1 or more")
        if self.variant not in ("abba", "baba", "mixed"):
            raise ConfigError(f"variant '{self.variant}' is unknown; use abba, baba or mixed")
        if self.corruption not in ("abc", "s2", "swap"):
            raise ConfigError(f"corruption '{self.corruption}' is unknown; use abc, s2 or swap")
        if not 0 <= self.min_accuracy <= 1:
            raise ConfigError(f"min_accuracy {self.min_accuracy} must lie between 0 and 1")


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


@dataclass(frozen=True)
class Task:
    """Prompts of equal length with their answers.

    Attributes:
        name: as in TASKS.
        tokens, corrupted: int64 [n, T], BOS included when the tokenizer has one; they differ only where it matters.
        right, wrong: answers' token ids int64 [n, m], padded with −1.
        positions: where the answer is predicted, int64 [n].
        roles: named positions, such as "S2", int64 [n] each.
        metric: "logit" (difference of mean logits) or "probability".
        notes: what a reader should know of how the prompts were made.
    """

    name: str
    tokens: Tensor
    corrupted: Tensor
    right: Tensor
    wrong: Tensor
    positions: Tensor
    roles: dict[str, Tensor] = field(default_factory=dict)
    metric: str = "logit"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def metric_fn(self) -> Metric:
        """The task's metric on its clean prompts' answers."""
        kind = LogitDifference if self.metric == "logit" else ProbabilityDifference
        return kind(self.right, self.wrong, self.positions)

    def logit_difference(self) -> LogitDifference:
        """Difference of mean logits, whatever the task's own metric is (attribution needs a linear one)."""
        return LogitDifference(self.right, self.wrong, self.positions)

    def take(self, rows: slice | Tensor) -> Task:
        """Some of the prompts."""
        roles = {name: where[rows] for name, where in self.roles.items()}
        parts = (self.tokens, self.corrupted, self.right, self.wrong, self.positions)
        tokens, corrupted, right, wrong, positions = (part[rows] for part in parts)
        return Task(self.name, tokens, corrupted, right, wrong, positions, roles, self.metric, self.notes)


@torch.no_grad()
def score_task(model: HookedModel, task: Task, batch_size: int = 16, seed: int = 0) -> TaskScore:
    """The model's accuracy and mean metric on the clean prompts."""
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


def require_ability(model: HookedModel, task: Task, min_accuracy: float, batch_size: int = 16) -> TaskScore:
    """The model's score, or a refusal: a circuit for something a model cannot do is a story about noise.

    Raises:
        TaskError: the accuracy is below min_accuracy; says it, with its interval.
    """
    score = score_task(model, task, batch_size)
    if score.accuracy < min_accuracy:
        raise TaskError(
            f"{model.name} cannot do '{task.name}': it is right on {score.accuracy:.0%} of {len(task)} prompts (95 % "
            f"interval {span(score.accuracy_low, score.accuracy_high, '.0%')}, asked for {min_accuracy:.0%}); use another "
            "model or task, or lower min_accuracy"
        )
    return score


def make_task(model: HookedModel, config: TaskConfig | None = None) -> Task:
    """Prompts of a task in the model's own tokens.

    Raises:
        ConfigError: there is no such task.
        TaskError: the tokenizer lacks one-token words for it.
        UnsupportedModelError: the model has no tokenizer.
    """
    from attlas.analyses.tasks.builders import BUILDERS

    config = config or TaskConfig()
    if config.task not in BUILDERS:
        raise ConfigError(
            f"task '{config.task}' is unknown{nearest(config.task, BUILDERS)}; there are {', '.join(BUILDERS)}"
        )
    task = BUILDERS[config.task](model, config)
    if task.tokens.shape[1] > model.cfg.n_ctx:
        raise TaskError(
            f"'{task.name}' needs {task.tokens.shape[1]} tokens and the context window of {model.name} is "
            f"{model.cfg.n_ctx}; use another task"
        )
    return task


def task_names() -> tuple[str, ...]:
    """Names of all tasks."""
    from attlas.analyses.tasks.builders import BUILDERS

    return tuple(BUILDERS)
