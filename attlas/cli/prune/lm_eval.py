"""The part of `attlas prune --lm-eval` that runs lm-evaluation-harness tasks before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.pruning.lm_eval.tasks import LMEvalConfig, LMEvalTasks, compared, require_lm_eval
from attlas.cli.common import Output
from attlas.errors import ConfigError
from attlas.interp import HookedModel

if TYPE_CHECKING:
    from attlas.cli.prune.args import Args

Rows = list[dict[str, Any]]


def lm_eval_config(args: Args) -> LMEvalConfig | None:
    """What the arguments ask for; None without --lm-eval.

    Raises:
        ConfigError: an argument is out of range, or belongs to --lm-eval and stands alone.
        MissingExtraError: lm-eval is not installed.
    """
    if not args.lm_eval:
        if args.lm_eval_path is not None or args.lm_eval_limit is not None:
            raise ConfigError("--lm-eval-path and --lm-eval-limit belong to --lm-eval; name tasks with it")
        return None
    require_lm_eval()
    sizes = {"n_prompts": args.n_prompts, "batch_size": args.curve.batch_size, "seed": args.curve.seed}
    return LMEvalConfig(args.lm_eval, args.lm_eval_path, args.lm_eval_limit, **sizes)


class LMEval:
    """The tasks, with the whole model's results; opened before the long work, so that a missing data set is told early."""

    def __init__(self, model: HookedModel, config: LMEvalConfig) -> None:
        self.tasks = LMEvalTasks(model, config)
        self.before = self.tasks.run(model.hf)

    def after(self, hf: Any, name: str, out: Output) -> Rows:
        """Rows of the pruned model beside the whole one, shown as well; `name` says what was done to it."""
        rows = compared(self.before, self.tasks.run(hf))
        columns = ("before", "stderr_before", "after", "stderr_after", "delta", "delta_stderr", "n")
        out.table(
            "lm-eval tasks; ± is one standard error, that of Δ of the same documents in pairs",
            ["task, metric", "whole", "±", name, "±", "Δ", "±", "documents"],
            [(_title(row), *["–" if row[key] is None else row[key] for key in columns]) for row in rows],
        )
        return rows


def lm_eval_facts(rows: Rows) -> dict[str, str]:
    """Rows of the model card: metric before → after, each with its standard error."""
    return {
        f"lm-eval {_title(row)}": f"{_value(row, 'before')} → {_value(row, 'after')} ({row['n'] or 'all'} documents, "
        f"{row['n_shot'] or 0}-shot)"
        for row in rows
    }


def _title(row: dict[str, Any]) -> str:
    return f"{row['task']}, {row['metric']}" + ("" if row["filter"] == "none" else f" ({row['filter']})")


def _value(row: dict[str, Any], when: str) -> str:
    error = row[f"stderr_{when}"]
    return f"{row[when]:.4g}" + ("" if error is None else f" ± {error:.2g}")
