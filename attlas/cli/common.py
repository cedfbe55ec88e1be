"""What every verb shares: argument groups, progress bars, the `--json` switch, and errors in one line."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console
from rich.table import Table

from attlas.cli.next_step import next_line
from attlas.cli.options import ModelArgs, OutArgs
from attlas.cli.progress import Reporter, Task, reporter
from attlas.cli.together import leave, place, require_shared, tell, unheard
from attlas.data.disk import as_storage_error
from attlas.data.processes.launch import launched
from attlas.data.progress import Track
from attlas.errors import AttlasError

if TYPE_CHECKING:
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel

_opened: list[Workspace] = []  # by the verb that runs


class Output:
    """A verb's channel to the person: bars and tables on stderr, so that stdout holds the JSON alone."""

    def __init__(self, as_json: bool, argv: Sequence[str] = (), verb: str = "", silent: bool = False) -> None:
        self.as_json = as_json or silent
        self.silent = silent  # one of several processes, and not the one that tells
        self._typed = ["attlas", verb, *argv]
        self.moved: list[tuple[Path, Path]] = []  # where a result was asked for, and where it is
        self.how_to_go_on: Callable[[], str] = lambda: f"finished runs are kept; again: {self.command()}"
        self.given = {a[2:].split("=")[0].replace("-", "_") for a in argv if a.startswith("--")}  # options typed out
        self.console = Console(stderr=True, quiet=silent, highlight=False)
        self.reporter = Reporter(self.console) if silent else reporter(self.console)

    def command(self, *more: str) -> str:
        """The command as it was typed, with more options, ready to paste."""
        return shlex.join([*self._typed, *(option for option in more if option not in self._typed)])

    def kept_elsewhere(self, asked: Path, kept: Path, why: str) -> None:
        """A result found no room where it was asked for, and lies on another disk; the verb ends with status 1."""
        self.moved.append((asked, kept))
        warnings.warn(why, stacklevel=2)

    def say(self, message: str) -> None:
        """One line of news."""
        self.console.print(message, soft_wrap=True)  # a run id that is broken in two cannot be pasted

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A small result table for reading; `--json` holds the same numbers in full."""
        if self.as_json:
            return
        table = Table(header_style="bold", box=None, pad_edge=False)
        for index, name in enumerate(columns):
            table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*[_cell(value) for value in row])
        console = Console(highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = LOG_WIDTH
        console.print(title, style="italic", markup=False, soft_wrap=True)  # a title in the table breaks at its width
        console.print(table)

    @property
    def track(self) -> Track:
        """Progress with rate and time left, for every function that loops; may be nested."""
        return self.reporter

    def phase(self, description: str) -> AbstractContextManager[Task]:
        """Something long without a count, such as loading a model."""
        return self.reporter.task(description)


LOG_WIDTH = 160  # characters: a pipe or a log has no width of its own, and a row on one line can be searched for
_BREAKS = str.maketrans("\n\t\r", "↵⇥␍")


def _cell(value: Any) -> str:
    """Floats to four digits; what is not known (no value, no interval) as a dash; line breaks of tokens as signs."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value).translate(_BREAKS)


def open_model(args: ModelArgs, out: Output) -> HookedModel:
    """Load the model the arguments name, saying so."""
    from attlas.interp import load_model

    with out.phase(f"loading {args.model}"):
        model = load_model(args.model, args.device, args.dtype, args.device_map, args.trust_remote_code)
    for note in model.structure.notes:
        out.say(note)
    return model


def open_workspace(args: OutArgs) -> Workspace:
    """Open (not yet create) the workspace that the arguments name, for writing.

    Should its disk be full when a result is ready, the result is kept on another one (see Workspace).

    Raises:
        StorageError: it cannot be written; said before any work.
    """
    from attlas.data.workspace import Workspace

    workspace = Workspace(args.workspace, rescue=True)
    if launched()[0] == 0:
        workspace.check_writable()
    _opened.append(workspace)
    return workspace


@contextlib.contextmanager
def _short_warnings(verb: str) -> Iterator[None]:
    """Warnings as one line, without the place in the code that gave them."""
    usual = warnings.formatwarning

    def one_line(message: Any, category: type[Warning], *where: Any, **more: Any) -> str:
        if category is not UserWarning:
            return usual(message, category, *where, **more)
        return f"attlas {verb}: warning: {message}\n"

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual


class _Terminated(KeyboardInterrupt):
    """SIGTERM: whatever Ctrl-C stops, this stops."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as an exception, so that temporary files go and the last line is said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _Terminated

    usual = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def _storage_line(error: BaseException) -> str | None:
    """What a full disk or a read-only place did to a verb, in one line, or None when the error is another."""
    refused = as_storage_error(error)
    return str(refused) if refused is not None else None


def _moved(verb: str, out: Output) -> int:
    """Status 1, and a line, when a result had to be kept elsewhere than asked."""
    moved = [*out.moved, *((w.moved_from, w.path) for w in _opened if w.moved_from is not None)]
    for asked, kept in moved:
        use = "" if (asked, kept) in out.moved else f" (use it with --workspace {kept})"
        print(f"attlas {verb}: '{asked}' had no room; the result is whole in '{kept}'{use}", file=sys.stderr)
    return 1 if moved else 0


def with_sub_verb(module: ModuleType, argv: Sequence[str]) -> list[str]:
    """The arguments with the sub-verb first, as they are called today; the verb's default one where none is named.

    A verb says: SUB_VERBS, names that may also stand behind options (`attlas entropy -m gpt2-mini anatomy`); IMPLIED,
    option → the sub-verb that it asks for; DEFAULT_ARGV; OLD_NAMES, older name → name; OLD_OPTIONS, sub-verb → older
    option → the options that take its values now (none: it was never read). A function `as_today` of the verb has the
    arguments first, for what no list can say.
    """
    words, old = list(getattr(module, "as_today", list)(argv)), getattr(module, "OLD_NAMES", {})
    if words[:1] in (["-h"], ["--help"]):
        return words
    if not words or words[0].startswith("-"):
        words = _sub_verb_first(module, words, {*getattr(module, "SUB_VERBS", ()), *old})
    if not words:
        return words
    name = old.get(words[0], words[0])
    return [name, *_renamed(words[1:], getattr(module, "OLD_OPTIONS", {}).get(name, {}))]


def sub_verb_module(verb: str, args: object) -> ModuleType:
    """The module whose `run` does a sub-verb: the file named after the class of its options."""
    return importlib.import_module(f"attlas.cli.{verb}.{type(args).__name__.lower()}")


def _sub_verb_first(module: ModuleType, words: list[str], names: set[str]) -> list[str]:
    for at, word in enumerate(words):
        if word in names and (not words[at - 1].startswith("-") or words[at - 1] == "--json"):
            return [word, *words[:at], *words[at + 1 :]]
    for option, name in getattr(module, "IMPLIED", {}).items():
        if any(word.split("=")[0] == option for word in words):
            return [name, *words]
    return [*getattr(module, "DEFAULT_ARGV", []), *words]


def _renamed(words: list[str], options: Mapping[str, Sequence[str]]) -> list[str]:
    """The words with each older option, and the values behind it, under its present names."""
    found: list[str] = []
    at = 0
    while at < len(words):
        option, _, value = words[at].partition("=")
        at += 1
        if option not in options:
            found.append(words[at - 1])
            continue
        values = [value] if value else []
        while at < len(words) and not words[at].startswith("-"):
            values.append(words[at])
            at += 1
        for name in options[option]:
            found += [name, *values]
    return found


def _about(module: ModuleType) -> str | None:
    """What stands over a list of sub-verbs; a verb without them says it by the docstring of its `Args`."""
    default = " ".join(getattr(module, "DEFAULT_ARGV", []))
    return f"{module.__doc__} Without a sub-verb: {default}." if default else None


def run_verb(verb: str, module: ModuleType, argv: Sequence[str]) -> int:
    """Parse a verb's arguments, run it, print its result, turn errors into one line and a status.

    Returns:
        0 done; 1 done, but something is to be mended (`doctor`) or the result lies elsewhere than asked; 2 refused;
        130 interrupted; 143 terminated.
    """
    out: Output | None = None
    _opened.clear()
    try:
        silent = place(verb)[0] > 0
        with unheard(silent):
            args = tyro.cli(
                module.Args,
                prog=f"attlas {verb}",
                description=_about(module),
                args=with_sub_verb(module, argv),
                config=(tyro.conf.OmitArgPrefixes,),
            )
        out = Output(as_json=getattr(args, "json", False), argv=argv, verb=verb, silent=silent)
        require_shared(verb, args)
        if silent:
            warnings.simplefilter("ignore")
        quiet = contextlib.redirect_stdout(sys.stderr) if out.as_json else contextlib.nullcontext()
        with quiet, _short_warnings(verb), _terminable():
            result = module.run(args, out)
    except AttlasError as error:
        tell(f"attlas {verb}: {error}")
        if os.environ.get("ATTLAS_DEBUG"):
            raise
        return 2
    except KeyboardInterrupt as stopped:
        ended = "terminated" if isinstance(stopped, _Terminated) else "interrupted"
        tell(f"attlas {verb}: {ended}{'; ' + out.how_to_go_on() if out is not None else ''}")
        return 143 if isinstance(stopped, _Terminated) else 130
    except Exception as error:
        line = _storage_line(error)
        if line is None or os.environ.get("ATTLAS_DEBUG"):
            raise
        tell(f"attlas {verb}: {line}")
        return 2
    leave()
    if out.silent:
        return 0
    if out.as_json:
        from attlas.data.workspace import jsonable

        print(json.dumps(jsonable(result), ensure_ascii=False, allow_nan=False))
    moved = _moved(verb, out)
    if not moved and (line := next_line(verb, args, result)):
        print(line, file=sys.stderr)
    return moved or int(getattr(module, "STATUS", _ok)(result))


def _ok(result: Any) -> int:
    return 0


def done(saved: Run, workspace: Workspace, summary: dict[str, Any], out: Output) -> dict[str, Any]:
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **summary}
