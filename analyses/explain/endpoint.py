"""A language model behind an address that speaks OpenAI's chat completions; the only thing here that sends anything."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from attlas.analyses.explain.explainer import Reply
from attlas.analyses.explain.prompts import Prompt
from attlas.errors import ConfigError, EndpointError

KEYS = ("ATTLAS_API_KEY", "OPENAI_API_KEY")  # of the environment; the first that is set
MOST_BYTES = 4 << 20  # of an answer
MOST_WAIT_S = 60.0  # that a busy server may ask for
_TRANSIENT = {408, 409, 425, 429}
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class _Here(urllib.request.HTTPRedirectHandler):
    """No redirects: the key would go along to wherever they lead."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class Endpoint:
    """An OpenAI-compatible endpoint: OpenAI's own, or vLLM, llama.cpp, Ollama and others on any machine.

    Attributes:
        url: up to and with /v1, or the whole address of chat/completions.
        model: the name it knows the model by.
        timeout: seconds a request may take.
        retries: how often a request that failed for the moment (429, 5xx, no connection, no whole answer) is sent again.
        pause: seconds before the first repetition, doubled with each, unless the server says how long (at most 60).
        key: sent as a bearer token, never shown or kept; by default what ATTLAS_API_KEY or OPENAI_API_KEY holds.

    Raises:
        ConfigError: no such address, no model, or a key that would travel unencrypted to another machine.

    Example:
        >>> from attlas.analyses.explain import Endpoint
        >>> Endpoint("http://localhost:8000/v1", "qwen", key="").address
        'http://localhost:8000/v1/chat/completions'
    """

    url: str
    model: str
    timeout: float = 120.0
    retries: int = 4
    pause: float = 1.0
    key: str | None = field(default=None, repr=False)
    _newer: bool = field(default=False, init=False, repr=False)  # it wants max_completion_tokens

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"endpoint '{self.url[:100]}' is no address; give one such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise ConfigError(f"the endpoint's address holds a password; put the key into {KEYS[0]}")
        if not self.model:
            raise ConfigError("name the model that the endpoint is to use (--endpoint-model)")
        if not (self.timeout > 0 and self.retries >= 0 and self.pause >= 0):
            raise ConfigError(
                f"timeout {self.timeout} must be above 0; retries {self.retries}, pause {self.pause} at least 0"
            )
        if self.key is None:
            self.key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "")
        self._local = parts.hostname in _LOCAL
        if self.key and parts.scheme == "http" and not self._local:
            raise ConfigError(
                f"the key would travel unencrypted to {parts.hostname}; give https, or unset {' and '.join(KEYS)}"
            )
        handlers: list[urllib.request.BaseHandler] = [_Here()]
        if self._local:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    @property
    def address(self) -> str:
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    @property
    def name(self) -> str:
        return f"{self.model} at {urlsplit(self.url).netloc}"

    @property
    def identity(self) -> str:
        return f"endpoint {self.address} {self.model} temperature 0"

    def ask(self, prompt: Prompt) -> Reply:
        """Send one prompt.

        Raises:
            EndpointError: it refused, or did not answer after all repetitions; what it said last.
        """
        for attempt in range(self.retries + 1):
            try:
                return _read(self._send(prompt))
            except _Failed as failed:
                if failed.change and not self._newer:
                    self._newer = True
                    continue
                if not failed.passes or attempt == self.retries:
                    more = f" ({attempt + 1} times)" if attempt else ""
                    raise EndpointError(f"{self.name}: {self._clean(str(failed))}{more}") from None
                time.sleep(min(MOST_WAIT_S, self.pause * 2**attempt if failed.wait is None else failed.wait))
        raise EndpointError(f"{self.name} takes neither form of the request")

    def _send(self, prompt: Prompt) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}],
        }
        # Reasoning models of OpenAI refuse the older name, and any temperature.
        body |= {"max_completion_tokens": prompt.n_tokens} if self._newer else {"max_tokens": prompt.n_tokens}
        body |= {} if self._newer else {"temperature": 0}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "attlas"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                found: bytes = response.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise _refused(error) from None
        except (TimeoutError, OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", error)
            if isinstance(why, TimeoutError):
                raise _Failed(f"no answer within {self.timeout:g} s", passes=True) from None
            raise _Failed(f"cannot be reached ({_line(why)})", passes=True) from None
        if len(found) > MOST_BYTES:
            raise _Failed(f"answered with more than {MOST_BYTES >> 20} MiB")
        return found

    def _clean(self, text: str) -> str:
        return text.replace(self.key, "…") if self.key else text


class _Failed(Exception):
    """Why a request failed; whether it may pass; how long to wait; whether the other form of it may do."""

    def __init__(self, why: str, passes: bool = False, wait: float | None = None, change: bool = False) -> None:
        super().__init__(why)
        self.passes, self.wait, self.change = passes, wait, change


def _refused(error: urllib.error.HTTPError) -> _Failed:
    with error:
        said = error.read(MOST_BYTES).decode("utf-8", "replace")
    try:
        told = json.loads(said)
        inner = told.get("error", told) if isinstance(told, dict) else told
        said = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except (ValueError, RecursionError):
        pass
    change = error.code == 400 and "max_completion_tokens" in said
    passes = error.code in _TRANSIENT or error.code >= 500
    what = f"answered {error.code}: {_line(said) or error.reason}"
    if 300 <= error.code < 400:
        what = f"answered {error.code}, which leads elsewhere; give the address that it leads to"
    return _Failed(what, passes, _wait(error.headers), change)


def _wait(headers: Message) -> float | None:
    """Seconds of Retry-After; None where it says a date, or nothing."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None


def _read(body: bytes) -> Reply:
    try:
        told = json.loads(body)
        text = told["choices"][0]["message"]["content"]
        usage = told.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError("content is no text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        shown = _line(body[:400].decode("utf-8", "replace"))
        raise _Failed(f"answered no chat completion but {shown!r}", passes=True) from None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return Reply(text, total if isinstance(total, int) else None)


def _line(text: Any) -> str:
    return " ".join(str(text).split())[:160]
