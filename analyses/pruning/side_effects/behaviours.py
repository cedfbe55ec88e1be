"""Which behaviours a drop takes away: tasks with known answers, and what attention heads do on repeated random tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.common.repeats import repeat_scores, repeated_tokens
from attlas.analyses.tasks.catalog import make_task
from attlas.analyses.tasks.task import Task, TaskConfig
from attlas.data.stats import bootstrap_mean
from attlas.errors import TaskError, UnsupportedModelError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.drop import Drop, masked

TASKS = ("ioi", "induction", "induction-natural")
ABLE = 0.7


@torch.no_grad()
def task_values(model: HookedModel, task: Task, batch_size: int = 16) -> Tensor:
    """The task's metric of each prompt, float64 [n]."""
    parts = [task.take(slice(start, start + batch_size)) for start in range(0, len(task), batch_size)]
    return torch.cat([part.metric_fn()(model(part.tokens)).double().cpu() for part in parts])


def task_losses(
    model: AnyModel, drop: Drop, tasks: tuple[str, ...] = TASKS, n_prompts: int = 32, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows of the table behaviours_lost, task → why it was left out), both models on the same prompts.

    Example:
        >>> from attlas.analyses.pruning import Drop, task_losses
        >>> rows, skipped = task_losses(model, Drop.parse(("attn:2",)), ("induction",), n_prompts=2)
        >>> [row["task"] for row in rows]
        ['induction']
    """
    model = as_hooked(model)
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for name in tasks:
        try:
            task = make_task(model, TaskConfig(task=name, n_prompts=n_prompts, seed=seed))
        except (TaskError, UnsupportedModelError) as error:
            refused[name] = str(error)
            continue
        before = task_values(model, task).numpy()
        with masked(model, drop):
            after = task_values(model, task).numpy()
        columns = np.stack([before, after, after - before, before > 0, after > 0], axis=1)
        mean, low, high = bootstrap_mean(columns, seed=seed)
        rows.append(
            {
                "task": name,
                "unit": "logits" if task.metric == "logit" else "probability",
                "before": float(mean[0]),
                "after": float(mean[1]),
                "delta": float(mean[2]),
                "low": float(low[2]),
                "high": float(high[2]),
                "accuracy_before": float(mean[3]),
                "accuracy_after": float(mean[4]),
                "able": bool(mean[3] >= ABLE),
                "n_prompts": len(task),
            }
        )
    return rows, refused


def head_losses(model: HookedModel, drop: Drop, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the table heads_lost: a head's scores on repeated random tokens; a head that is gone scores 0 after."""
    tokens = repeated_tokens(model, seed=seed)
    before = repeat_scores(model, tokens)
    with masked(model, drop):
        after = repeat_scores(model, tokens)
    gone_layers = {*drop.attn, *drop.blocks}
    rows = []
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            absent = layer in gone_layers or (layer, head) in drop.heads
            row: dict[str, Any] = {"layer": layer, "head": head, "absent": absent}
            for name in ("induction", "previous_token", "duplicate_token"):
                row[f"{name}_before"] = float(before[name][layer, head])
                row[f"{name}_after"] = 0.0 if absent else float(after[name][layer, head])
            rows.append(row)
    return rows
