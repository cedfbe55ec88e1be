"""A task from prompts that a person types, with what can be wrong with them said in one line."""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor

from attlas.analyses.tasks.task import Task
from attlas.analyses.tasks.words import token_ids
from attlas.errors import PromptError
from attlas.interp import AnyModel, HookedModel, as_hooked


def align(model: HookedModel, clean: str, corrupted: str) -> tuple[Tensor, Tensor]:
    """Both prompts as tokens [1, T], when they are equally long.

    Raises:
        PromptError: they are not; names the tokens from the first difference on.
    """
    a, b = model.to_tokens(clean), model.to_tokens(corrupted)
    if a.shape[1] == b.shape[1]:
        return a, b
    left, right = model.to_str_tokens(a), model.to_str_tokens(b)
    at = next(i for i, (x, y) in enumerate(zip_longest(left, right)) if x != y)
    raise PromptError(
        f"the prompts have {len(left)} and {len(right)} tokens and part at position {at}: "
        f"{left[at : at + 4]} against {right[at : at + 4]}; patching needs equal lengths, reword one of them"
    )


def one_token(model: HookedModel, word: str) -> int:
    """The id of an answer.

    Raises:
        PromptError: it is not one token; names its tokens.
    """
    tokenizer = model.require_tokenizer("answers in words")
    ids = token_ids(tokenizer, word)
    if len(ids) != 1:
        parts = model.to_str_tokens(ids)
        hint = "" if word.startswith(" ") else f" (with a space before it: {len(token_ids(tokenizer, ' ' + word))})"
        raise PromptError(f"the answer {word!r} is {len(ids)} tokens {parts}{hint}; give an answer of one token")
    return ids[0]


def task_from_prompts(
    model: AnyModel, prompt: str, answer: str, wrong: str | None = None, corrupted: str | None = None
) -> Task:
    """A task of one prompt.

    Args:
        prompt: ends where the answer should come.
        answer, wrong: one token each, with the space they begin with; without `wrong` the metric is the answer's logit.
        corrupted: a prompt of the same length; default the prompt itself (for ablations, attribution and tracing).

    Raises:
        PromptError: lengths differ, or an answer is not one token.

    Example:
        >>> from attlas.analyses.tasks import task_from_prompts
        >>> task = task_from_prompts(model, "one two three one two", " three", " four")
        >>> task.tokens.shape  # [prompts, tokens]
        torch.Size([1, 6])
    """
    model = as_hooked(model)
    clean, other = align(model, prompt, corrupted if corrupted is not None else prompt)
    return Task(
        name="prompt",
        tokens=clean.cpu(),
        corrupted=other.cpu(),
        right=torch.tensor([[one_token(model, answer)]]),
        wrong=torch.tensor([[one_token(model, wrong)]]) if wrong is not None else torch.zeros(1, 0, dtype=torch.long),
        positions=torch.tensor([clean.shape[1] - 1]),
        roles={"END": torch.tensor([clean.shape[1] - 1])},
    )
