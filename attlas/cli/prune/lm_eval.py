"""The part of `attlas prune --lm-eval` that checks the options and shows tasks before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attlas.analyses.pruning.lm_eval.tasks import require_lm_eval, title
from attlas.cli.common import Output
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.cli.prune.args import Args


def check_lm_eval(args: Args) -> None:
    """Refuse what belongs to --lm-eval and stands alone.

    Raises:
        ConfigError: an option stands alone.
        MissingExtraError: lm-eval is not installed.
    """
    if args.lm_eval:
        require_lm_eval()
    elif args.lm_eval_path is not None or args.lm_eval_limit is not None:
        raise ConfigError("--lm-eval-path and --lm-eval-limit belong to --lm-eval; name tasks with it")


def show_lm_eval(rows: Sequence[Mapping[str, Any]], name: str, out: Output) -> None:
    """Rows of the pruned model beside the whole one; `name` says what was done to it."""
    columns = ("before", "stderr_before", "after", "stderr_after", "delta", "delta_stderr", "n")
    out.table(
        "lm-eval tasks; ± is one standard error, that of Δ of the same documents in pairs",
        ["task, metric", "whole", "±", name, "±", "Δ", "±", "documents"],
        [(title(row), *["–" if row[key] is None else row[key] for key in columns]) for row in rows],
    )
