"""Asking within a budget, each question once: answers are kept in a file of the workspace."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attlas.analyses.explain.explainer import Explainer, Reply
from attlas.analyses.explain.prompts import Prompt
from attlas.errors import StorageError, require_counts

FILE = ".answers.sqlite"
CHARACTERS = 4  # taken for a token where nobody counted
_SCHEMA = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, n_tokens INTEGER NOT NULL)"


@dataclass
class Asked:
    """One request and its answer; `kept` where it had been answered before."""

    step: str
    prompt: Prompt
    answer: str
    kept: bool


class Asker:
    """Asks an explainer; a question that was answered before is not asked again, also by a later process.

    Args:
        explainer: who answers.
        folder: a workspace, where answers are kept; None keeps them for as long as this object lives.
        max_requests: most requests that are sent; kept answers cost nothing. None: no limit.
        max_tokens: no request is sent once answers have cost this many tokens, prompts included.

    Example:
        >>> from attlas.analyses.explain import Asker, LocalExplainer, Prompt
        >>> asker = Asker(LocalExplainer(model), folder, max_requests=1)
        >>> first = asker.ask("label", Prompt("Continue.", "the white", 4))
        >>> asker.ask("label", Prompt("Continue.", "the white", 4)) == first, asker.n_requests
        (True, 1)
        >>> asker.ask("label", Prompt("Continue.", "another", 4)) is None  # the budget is spent
        True
    """

    def __init__(
        self,
        explainer: Explainer,
        folder: str | Path | None = None,
        max_requests: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.explainer, self.max_requests, self.max_tokens = explainer, max_requests, max_tokens
        require_counts(self, *(n for n in ("max_requests", "max_tokens") if getattr(self, n) is not None))
        self.path = None if folder is None else Path(folder) / FILE
        self.n_requests = self.n_tokens = 0
        self.asked: list[Asked] = []
        self._here: dict[str, Reply] = {}

    @property
    def spent(self) -> bool:
        """Whether the budget allows no further request."""
        requests = self.max_requests is not None and self.n_requests >= self.max_requests
        return requests or (self.max_tokens is not None and self.n_tokens >= self.max_tokens)

    def ask(self, step: str, prompt: Prompt) -> str | None:
        """The answer, kept or new; None where it is not known and the budget is spent.

        Raises: as the explainer's `ask`; StorageError where answers cannot be kept.
        """
        asked = json.dumps([self.explainer.identity, prompt.system, prompt.user, prompt.n_tokens])
        key = hashlib.sha256(asked.encode()).hexdigest()
        reply = self._kept(key)
        known = reply is not None
        if reply is None:
            if self.spent:
                return None
            self.n_requests += 1
            reply = self.explainer.ask(prompt)
            length = len(prompt.system) + len(prompt.user) + len(reply.text)
            cost = reply.n_tokens if reply.n_tokens is not None else -(-length // CHARACTERS)
            self.n_tokens += cost
            self._keep(key, Reply(reply.text, cost))
        self.asked.append(Asked(step, prompt, reply.text, known))
        return reply.text

    def _kept(self, key: str) -> Reply | None:
        if key in self._here or self.path is None or not self.path.exists():
            return self._here.get(key)
        with self._open(self.path) as file:
            row = file.execute("SELECT text, n_tokens FROM answers WHERE key = ?", [key]).fetchone()
        return Reply(*row) if row else None

    def _keep(self, key: str, reply: Reply) -> None:
        self._here[key] = reply
        if self.path is not None:
            with self._open(self.path) as file:
                file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", [key, reply.text, reply.n_tokens])

    @contextmanager
    def _open(self, path: Path) -> Iterator[sqlite3.Connection]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(path, timeout=20.0, isolation_level=None)
            try:
                file.execute(_SCHEMA)
                yield file
            finally:
                file.close()
        except (sqlite3.DatabaseError, OSError) as error:
            raise StorageError(
                f"answers cannot be kept in '{path}' ({error}); delete the file or free space"
            ) from error
