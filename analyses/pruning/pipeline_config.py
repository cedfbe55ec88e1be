"""What `prune` drops, and what it does with the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attlas.analyses.pruning.budget import Budget
from attlas.analyses.pruning.curve_config import BUDGETS, ORDERS
from attlas.analyses.pruning.healing import HealConfig
from attlas.analyses.pruning.lm_eval.tasks import LMEvalConfig
from attlas.errors import ConfigError
from attlas.interp.drop import TARGETS, Drop


@dataclass(frozen=True)
class PruneConfig:
    """What goes, by name or by scores and one budget, and what is done with the rest.

    Attributes:
        drop: what goes by name: a Drop, or parts such as "attn:2,5" and "head:0.4" (see `Drop.parse`).
        target: let scores choose among attn, mlp, joint, block, head or group; with exactly one budget.
        order: ranked, iterative, random, last, reversed, or of blocks angular (see DropCurveConfig).
        n: budget: how many.
        max_delta_ce: budget: as many as keep the loss within so many nats, on half of the data; the other half tells.
        save_parameters: budget: share of the parameters, 0–1.
        save_kv: budget: share of the KV cache, 0–1.
        save_time: budget: share of the time of a forward pass, 0–1.
        format: stock or compact.
        heal_steps: training steps of the pruned model on the calibration data; 0 heals nothing.
        heal_objective: distill or ce.
        heal_lr: peak learning rate of healing.
        lm_eval: lm-evaluation-harness tasks to run before and after.
        lm_eval_path: folder of task definitions of one's own.
        lm_eval_limit: at most so many documents of each task.
        n_prompts: prompts of each embedded task.
        head_score: what ranks heads: zero, mean, identity or taylor.
        batch_size: sequences or images at a time.
        seed: of orders, halves, healing and tasks.
        calibration: how the calibration data was asked for, for the record; None records its own name.
        calibration_tokens: how much of it was asked for, for the record; None records what there is.

    Raises:
        ConfigError: nothing or too much is said, or a value is out of range.
    """

    drop: Drop | tuple[str, ...] = ()
    target: str | None = None
    order: str = "ranked"
    n: int | None = None
    max_delta_ce: float | None = None
    save_parameters: float | None = None
    save_kv: float | None = None
    save_time: float | None = None
    format: str = "compact"
    heal_steps: int = 0
    heal_objective: str = "distill"
    heal_lr: float = 3e-4
    lm_eval: tuple[str, ...] = ()
    lm_eval_path: Path | None = None
    lm_eval_limit: int | None = None
    n_prompts: int = 32
    head_score: str = "zero"
    batch_size: int = 8
    seed: int = 0
    calibration: str | None = None
    calibration_tokens: int | None = None

    def __post_init__(self) -> None:
        if bool(self.named) == (self.target is not None):
            what = "both drop and target are" if self.target else "nothing is"
            raise ConfigError(f"{what} given to prune; give drop, or target and one budget")
        if self.target is not None and self.target not in TARGETS:
            raise ConfigError(f"target '{self.target}' is unknown; choose {', '.join(TARGETS)}")
        if self.order not in ORDERS:
            raise ConfigError(f"order '{self.order}' is unknown; choose {', '.join(ORDERS)}")
        if self.order == "angular" and self.target not in (None, "block"):
            raise ConfigError(f"order 'angular' is of runs of blocks, and the target is {self.target}; take block")
        if self.format not in ("stock", "compact"):
            raise ConfigError(f"format '{self.format}' is unknown; choose stock or compact")
        if self.target is None and self._budgets:
            raise ConfigError(f"{next(iter(self._budgets))} is a budget and needs a target; what goes is named already")
        _ = self.budget, self.healing, self.tasks  # each refuses what is out of range

    @property
    def named(self) -> Drop:
        """What goes by name; empty where scores choose."""
        return self.drop if isinstance(self.drop, Drop) else Drop.parse(self.drop)

    @property
    def _budgets(self) -> dict[str, float]:
        """Those that are given."""
        return {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}

    @property
    def budget(self) -> Budget | None:
        """How much of the ranking goes; None where what goes is named."""
        if self.target is None:
            return None
        return Budget(self.n, self.save_parameters, self.save_kv, self.save_time, self.max_delta_ce)

    @property
    def healing(self) -> HealConfig | None:
        """How to heal, or None."""
        if not self.heal_steps:
            return None
        return HealConfig(self.heal_steps, self.heal_lr, objective=self.heal_objective, seed=self.seed)

    @property
    def tasks(self) -> LMEvalConfig | None:
        """The lm-eval tasks, or None."""
        if not self.lm_eval:
            return None
        sizes = {"n_prompts": self.n_prompts, "batch_size": self.batch_size, "seed": self.seed}
        return LMEvalConfig(self.lm_eval, self.lm_eval_path, self.lm_eval_limit, **sizes)
