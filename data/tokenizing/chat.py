"""Conversations as the text that an instruction model was trained on, by its tokenizer's own chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attlas.errors import PromptError, TextDataError, UnsupportedModelError

Message = dict[str, Any]
Render = Callable[[Any], str]
_HINT = 'give [{"role": "user", "content": "…"}], or plain text'


def conversation(given: str | Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages, from a list of them, its JSON, `@file.json` with such a list, or plain text as one of the user's.

    Raises:
        PromptError: nothing is given, the file cannot be read, or an element is no message.

    Example:
        >>> from attlas.data.tokenizing import conversation
        >>> conversation("Who wrote Moby Dick?")
        [{'role': 'user', 'content': 'Who wrote Moby Dick?'}]
        >>> conversation('[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]')[1]["content"]
        'Hi'
    """
    where = "the conversation"
    if isinstance(given, str) and given.startswith("@"):
        path = Path(given[1:]).expanduser()
        where = f"'{path}'"
        try:
            given = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"{where} cannot be read ({error}); give a JSON file with a list of messages") from error
    if isinstance(given, str):
        if not given.strip():
            raise PromptError(f"{where} is empty; {_HINT}")
        given = _parsed(given, where)
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages = [_message(m, where, i) for i, m in enumerate(given)]
    if not messages:
        raise PromptError(f"{where} has no message; {_HINT}")
    return messages


def _parsed(text: str, where: str) -> Any:
    """A JSON list or {"messages": list}; other text as it is, since people type brackets too."""
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        return text
    try:
        found = json.loads(text)
    except ValueError as error:
        if '"role"' in text:  # it was meant for one
            raise PromptError(f"{where} is not JSON ({error}); {_HINT}") from error
        return text
    if isinstance(found, dict) and isinstance(found.get("messages"), list):
        return found["messages"]
    if isinstance(found, list) and (not found or any(isinstance(m, dict) for m in found)):
        return found
    return text


def _message(message: Any, where: str, index: int) -> Message:
    if isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message:
        # Parquet gives every message all the keys of any
        return {key: value for key, value in message.items() if value is not None or key == "content"}
    has = f"has {', '.join(map(repr, message))}" if isinstance(message, Mapping) else f"is {json.dumps(message)[:40]}"
    raise PromptError(f"{where}: message {index} {has}, not 'role' and 'content'; {_HINT}")


def render(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool = True, name: str = "it") -> str:
    """A conversation as text, special tokens spelled out; these are single tokens again when the text is tokenised.

    Args:
        tokenizer: a Hugging Face tokenizer.
        messages: as `conversation` gives them.
        generation_prompt: end where the assistant's answer begins; a conversation whose last message is the assistant's
            ends inside it, open, so that what comes next goes on with it. Without it the conversation is whole.
        name: of the model, for errors.

    Raises:
        UnsupportedModelError: no tokenizer, or one without a chat template.
        PromptError: the template refuses the conversation (roles that do not take turns, an unknown role).

    Example:
        >>> from attlas.data.tokenizing import conversation, render
        >>> from transformers import PreTrainedTokenizerFast
        >>> tokenizer = model.tokenizer.__class__(tokenizer_object=model.tokenizer.backend_tokenizer)
        >>> tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\\n{% endfor %}"
        >>> render(tokenizer, conversation("Hello"))
        '[user] Hello\\n'
    """
    if tokenizer is None or getattr(tokenizer, "chat_template", None) is None:
        lack = "no tokenizer" if tokenizer is None else "no chat template in its tokenizer"
        raise UnsupportedModelError(
            f"{name} has {lack}; leave out --chat (a base model reads plain text), or put the template beside its weights "
            "as chat_template.jinja"
        )
    last = messages[-1]["role"] == "assistant"
    going_on = {"continue_final_message": True} if last else {"add_generation_prompt": True}
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, **(going_on if generation_prompt else {})
        )
    except Exception as error:  # a template raises what it likes: TemplateError, UndefinedError, TypeError, ValueError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        roles = ", ".join(str(m["role"]) for m in messages)
        raise PromptError(
            f"the chat template of {name} refuses the conversation ({reason}); its roles are {roles}"
        ) from error
    return text


def renderer(tokenizer: Any, source: str) -> Render:
    """What writes a document of a corpus as text: a list of messages, or plain text as one message of the user's.

    Raises (on a document): TextDataError, which names the source; UnsupportedModelError, as `render`.
    """

    def write(document: Any) -> str:
        given = [{"role": "user", "content": document}] if isinstance(document, str) else document
        try:
            return render(tokenizer, conversation(given), generation_prompt=False, name="the model")
        except PromptError as error:
            raise TextDataError(f"'{source}': {error}") from error

    return write
