"""Embedded prompts as lm-evaluation-harness tasks: multiple choice between the right and the wrong next token."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from attlas.analyses.tasks.catalog import make_task
from attlas.analyses.tasks.task import Task, TaskConfig
from attlas.errors import TaskError
from attlas.interp import HookedModel

# Random repeated tokens are no text: the tokenizer would read them back as others. Pairs that come again in text are.
EMBEDDED = {"attlas_ioi": "ioi", "attlas_induction": "induction-natural"}


def text_task(model: HookedModel, name: str, n_prompts: int, seed: int = 0) -> Task:
    """Prompts that the tokenizer reads back from text as the same tokens; at most n_prompts of them.

    Args:
        name: one of EMBEDDED.

    Raises:
        TaskError: no prompt comes back so, or the tokenizer lacks the words.
        UnsupportedModelError: the model has no tokenizer.
    """
    # Builders draw one prompt after the other, so a longer draw begins with the shorter one.
    task = make_task(model, TaskConfig(task=EMBEDDED[name], n_prompts=2 * n_prompts, seed=seed))
    kept = [row for row in range(len(task)) if _reads_back(model, task, row)][:n_prompts]
    if not kept:
        raise TaskError(f"the tokenizer of {model.name} reads no prompt of '{name}' back as it was; use another task")
    return task.take(torch.tensor(kept))


def write_prompts(model: HookedModel, name: str, folder: Path, n_prompts: int, seed: int = 0) -> None:
    """Write the task's definition (YAML) and prompts (JSONL) into `folder`, where lm-eval finds them by name.

    Raises:
        TaskError, UnsupportedModelError: see `text_task`.
    """
    task = text_task(model, name, n_prompts, seed)
    rows = []
    for row in range(len(task)):
        context, right, wrong = _texts(model, task, row)
        rows.append({"context": context, "choices": [right, wrong], "gold": 0})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    definition = {
        "task": name,
        "dataset_path": "json",
        # its own cache, so that nothing is left in the user's
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    # JSON is YAML
    (folder / f"{name}.yaml").write_text(json.dumps(definition, indent=2), encoding="utf-8")


def _texts(model: HookedModel, task: Task, row: int) -> tuple[str, str, str]:
    """Prompt (the BOS in writing, so that every caller of lm-eval gives the model the same), right and wrong answer."""
    ids = (task.tokens[row].tolist(), [int(task.right[row, 0])], [int(task.wrong[row, 0])])
    context, right, wrong = (model.tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in ids)
    return context, right, wrong


def _reads_back(model: HookedModel, task: Task, row: int) -> bool:
    def encode(text: str) -> list[int]:
        return list(model.tokenizer.encode(text, add_special_tokens=False))

    ids = task.tokens[row].tolist()
    context, right, wrong = _texts(model, task, row)
    return (
        context == context.rstrip()  # lm-eval moves spaces at the end into the answer
        and encode(context) == ids
        and encode(context + right) == [*ids, int(task.right[row, 0])]
        and encode(context + wrong) == [*ids, int(task.wrong[row, 0])]
    )
