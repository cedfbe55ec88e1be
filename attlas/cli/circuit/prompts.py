"""Prompts and autoencoders that the circuit verbs take: a task by name, or a prompt that a person types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attlas.analyses.tasks.catalog import make_task, require_ability
from attlas.analyses.tasks.prompts import task_from_prompts
from attlas.analyses.tasks.task import TaskConfig
from attlas.cli.inputs import as_typed
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.analyses.tasks.task import Task
    from attlas.cli.circuit.args import PromptArgs, Qk, Trace
    from attlas.cli.common import Output
    from attlas.interp import HookedModel


def load_task(model: HookedModel, args: PromptArgs, seed: int, out: Output) -> Task:
    """The prompts that the arguments name.

    Raises:
        TaskError: the model cannot do the task; says its accuracy.
        PromptError: the prompts do not line up, or an answer is not one token.
    """
    model.require_language_model()
    if args.prompt is not None:
        prompt, corrupted = as_typed(model, args.prompt, args, out), args.corrupted
        if corrupted is not None:
            corrupted = as_typed(model, corrupted, args)
        answer = args.answer if args.answer is not None else likely_next(model, prompt)
        if args.answer is None:
            out.say(f"answer: {answer!r}, the model's most likely next token")
        return task_from_prompts(model, prompt, answer, args.wrong, corrupted)
    for name in ("answer", "wrong", "corrupted"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} belongs to --prompt; give one, or leave it out to use --task {args.task}")
    if args.chat:
        raise ConfigError(f"--chat belongs to --prompt; give one, or leave it out to use --task {args.task}")
    config = TaskConfig(
        task=args.task,
        n_prompts=args.n_prompts,
        variant=args.variant,
        corruption=args.corruption,
        seed=seed,
        min_accuracy=args.min_accuracy,
    )
    task = make_task(model, config)
    if config.min_accuracy > 0:
        require_ability(model, task, config.min_accuracy)
    return task


def likely_next(model: HookedModel, prompt: str) -> str:
    """The most likely next token's text."""
    with torch.no_grad():
        best = int(model(model.to_tokens(prompt))[0, -1].argmax())
    return model.to_str_tokens([best])[0]


def _one_prompt(task: Task, args: Trace | Qk) -> str:
    """Which prompt a number belongs to: one alone has no spread."""
    return f"{task.name}, prompt {args.row} of {len(task)}, seed {args.seed}" if args.prompt is None else "one prompt"


def prompt_row(task: Task, row: int) -> int:
    """The row, when there is one."""
    if not 0 <= row < len(task):
        raise ConfigError(f"--row {row} is out of range; there are prompts 0–{len(task) - 1}")
    return row
