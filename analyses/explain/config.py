"""How `attlas.analyses.explain` asks and scores."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError, require_counts

LEAST_SHOWN = 3  # excerpts a label is asked from
LEAST_TESTED = 8  # held-out excerpts of a test, half of them right
MARK = 0.3  # a token is marked from this share of the excerpt's largest activation on


@dataclass(frozen=True)
class ExplainConfig:
    """How to ask for labels, and how to score them.

    Attributes:
        context: tokens of an excerpt.
        n_shown: excerpts a label is asked from: the strongest, and as many drawn from the others.
        n_test: held-out excerpts of each test, half of them right.
        per_prompt: held-out excerpts judged by one request.
        control: whether each test is made again with another label, on the same excerpts (twice the requests).
        label_tokens: most tokens of an answer that labels.
        answer_tokens: most tokens of an answer that judges.
        seed: of what is shown, held out and wrongly marked, and of which label stands in for which.
    """

    context: int = 32
    n_shown: int = 10
    n_test: int = 20
    per_prompt: int = 5
    control: bool = True
    label_tokens: int = 48
    answer_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        require_counts(self, "per_prompt", "label_tokens", "answer_tokens")
        if self.context < 4:
            raise ConfigError(f"context {self.context} is too short to tell what a feature reads; give 4 or more")
        if self.n_shown < LEAST_SHOWN:
            raise ConfigError(f"n_shown {self.n_shown} must be {LEAST_SHOWN} or more")
        if self.n_test < LEAST_TESTED:
            raise ConfigError(f"n_test {self.n_test} must be {LEAST_TESTED} or more, half of them right")
