"""A verb that torchrun started several times over: one process tells and writes, and an error is told once."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from attlas.data.processes.launch import launched
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.data.processes.group import Group

SHARED = ("train", "eval", "features", "capture")
"""Verbs that several processes can share."""


def place(verb: str) -> tuple[int, int]:
    """(rank, size) of this process.

    Raises:
        ConfigError: the verb cannot be shared.
    """
    rank, size = launched()
    if size > 1 and verb not in SHARED:
        raise ConfigError(f"'{verb}' runs in one process; start it without torchrun (which serves {', '.join(SHARED)})")
    return rank, size


def require_shared(verb: str, args: object) -> None:
    """Refuse a sub-verb that cannot be shared.

    Raises:
        ConfigError: it runs in one process.
    """
    name = type(args).__name__.lower()
    if launched()[1] > 1 and verb == "features" and name != "describe":
        raise ConfigError(f"'features {name}' runs in one process; start it without torchrun")


def join(device: str) -> Group:
    """The other processes; without torchrun none."""
    group: Group = _groups().join(device)
    return group


def leave() -> None:
    """Part from the others when this process ends; after an error nothing is waited for."""
    if launched()[1] > 1:
        atexit.register(_part)


def _part() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def tell(line: str) -> None:
    """A last line on stderr, by the process that has it first."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _groups().speaks(int(os.environ.get("RANK", "0"))):
        return
    print(line, file=sys.stderr, flush=True)


def _groups() -> ModuleType:
    from attlas.data.processes import group  # torch, which help texts do without

    return group


@contextlib.contextmanager
def unheard(silent: bool) -> Iterator[None]:
    """Nothing of what is printed inside is seen, where another process prints the same."""
    if not silent:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield
