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

from torch import Tensor

from attlas.analyses.tasks.metrics import LogitDifference, Metric, ProbabilityDifference
from attlas.errors import ConfigError, require_counts


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
        require_counts(self, "n_prompts")
        if self.variant not in ("abba", "baba", "mixed"):
            raise ConfigError(f"variant '{self.variant}' is unknown; use abba, baba or mixed")
        if self.corruption not in ("abc", "s2", "swap"):
            raise ConfigError(f"corruption '{self.corruption}' is unknown; use abc, s2 or swap")
        if not 0 <= self.min_accuracy <= 1:
            raise ConfigError(f"min_accuracy {self.min_accuracy} must lie between 0 and 1")


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
