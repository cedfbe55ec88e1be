"""Who is asked: a protocol, and a language model on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from attlas.analyses.explain.prompts import Prompt
from attlas.errors import ContextLengthError
from attlas.interp import AnyModel, as_hooked


@dataclass(frozen=True)
class Reply:
    """An answer, and the tokens that it cost (None where that was not said)."""

    text: str
    n_tokens: int | None = None


class Explainer(Protocol):
    """Anything that answers.

    Attributes:
        name: for people, and in the run's settings.
        identity: whatever its answer depends on besides the prompt; answers are kept under it.

    Example:
        >>> from attlas.analyses.explain import Explainer, LocalExplainer, Prompt
        >>> explainer: Explainer = LocalExplainer(model)
        >>> explainer.identity.startswith("local ")
        True
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def ask(self, prompt: Prompt) -> Reply:
        """Answer one prompt, always the same way where that can be had."""
        ...


class LocalExplainer:
    """A causal language model on this machine, greedy; nothing is sent anywhere.

    Args:
        model: a HookedModel, or anything `as_hooked` takes, with its tokenizer.

    Raises:
        UnsupportedModelError: a vision model, or a backbone.
        ConfigError: it has no tokenizer.

    Example:
        >>> from attlas.analyses.explain import LocalExplainer, Prompt
        >>> explainer = LocalExplainer(model)
        >>> reply = explainer.ask(Prompt("Say what these have in common.", "1. the <<white>> whale", 4))
        >>> explainer.name, isinstance(reply.text, str), reply.n_tokens > 4
        ('gpt2-mini', True, True)
    """

    def __init__(self, model: AnyModel) -> None:
        self.model = as_hooked(model)
        self.model.require_language_model()
        self.tokenizer: Any = self.model.require_tokenizer("prompts")

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def identity(self) -> str:
        return f"local {self.model.weight_hash} {self.model.dtype} greedy"

    @torch.no_grad()
    def ask(self, prompt: Prompt) -> Reply:
        """Generate greedily, by the tokenizer's chat template where it has one.

        Raises:
            ContextLengthError: prompt and answer do not fit its context window.
        """
        ids = self._ids(prompt)
        n_ctx = self.model.cfg.n_ctx
        if len(ids) + prompt.n_tokens > n_ctx:
            raise ContextLengthError(
                f"a prompt of {len(ids)} tokens and {prompt.n_tokens} of answer are more than the context window of "
                f"{self.name} ({n_ctx}); show fewer or shorter excerpts (n_shown, per_prompt, context)"
            )
        tokens = torch.tensor([ids], device=self.model.device)
        stop = self.tokenizer.eos_token_id
        made = self.model.hf.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=prompt.n_tokens,
            do_sample=False,
            pad_token_id=stop if stop is not None else 0,
        )[0]
        return Reply(self.tokenizer.decode(made[len(ids) :], skip_special_tokens=True), len(made))

    def _ids(self, prompt: Prompt) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        begin = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        text = f"{prompt.system}\n\n{prompt.user}\n\nAnswer:"
        return [*begin, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]
