"""What every verb shares: argument groups, progress bars, the `--json` switch, and errors in one line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from attlas.errors import AttlasError

if TYPE_CHECKING:
    from attlas.data.workspace import Workspace
    from attlas.interp import HookedModel

T = TypeVar("T")


@dataclass(frozen=True)
class ModelArgs:
    """The model to open."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "gpt2-mini"
    """Embedded or fetched model (`attlas models`), a local Hugging Face folder, or a hub id."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes CUDA when there is one."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""


@dataclass(frozen=True)
class TextArgs:
    """The text to run on."""

    text: str = "embedded:val"
    """embedded:train, embedded:val, or a JSONL, Parquet or text file, or a Hugging Face dataset folder."""
    n_tokens: int = 65_536
    """How many tokens to use."""
    seq_len: int = 256
    """Length of each packed sequence, BOS included; the default is cut to a shorter context window."""


@dataclass(frozen=True)
class OutArgs:
    """Where results go."""

    workspace: Annotated[Path, tyro.conf.arg(aliases=["-w"])] = Path("workspace")
    """Workspace folder; made when it is not there."""
    json: bool = False
    """Print the result as JSON on stdout (progress stays on stderr)."""


class Output:
    """A verb's channel to the person: bars and tables on stderr, so that stdout holds the JSON alone."""

    def __init__(self, as_json: bool, argv: Sequence[str] = ()) -> None:
        self.as_json = as_json
        self.given = {a[2:].split("=")[0].replace("-", "_") for a in argv if a.startswith("--")}  # options typed out
        self.console = Console(stderr=True, quiet=False, highlight=False)
        self._progress: Any = None

    def say(self, message: str) -> None:
        """One line of news."""
        self.console.print(message)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A small result table for reading; `--json` holds the same numbers in full."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for index, name in enumerate(columns):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*[_cell(value) for value in row])
        Console(highlight=False).print(table)

    def track(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """A progress bar with rate and time left (see attlas.data.progress.Track); may be nested."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        outermost = self._progress is None
        if outermost:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=not self.console.is_terminal,
            )
            self._progress.start()
        try:
            yield from self._progress.track(iterable, total=total, description=description)
        finally:
            if outermost:
                self._progress.stop()
                self._progress = None


def _cell(value: Any) -> str:
    """Floats to four digits; what is not known (no value, no interval) as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def open_model(args: ModelArgs, out: Output) -> HookedModel:
    """Load the model the arguments name, saying so."""
    from attlas.interp import load_model

    with out.console.status(f"loading {args.model}"):
        return load_model(args.model, device=args.device, dtype=args.dtype)


def open_workspace(args: OutArgs) -> Workspace:
    """Open (not yet create) the workspace the arguments name."""
    from attlas.data.workspace import Workspace

    return Workspace(args.workspace)


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


def run_verb(verb: str, module: ModuleType, argv: Sequence[str]) -> int:
    """Parse a verb's arguments, run it, print its result, turn errors into one line and a status."""
    try:
        args = tyro.cli(
            module.Args,
            prog=f"attlas {verb}",
            args=list(argv) or list(getattr(module, "DEFAULT_ARGV", [])),
            config=(tyro.conf.OmitArgPrefixes,),
        )
        out = Output(as_json=getattr(args, "json", False), argv=argv)
        quiet = contextlib.redirect_stdout(sys.stderr) if out.as_json else contextlib.nullcontext()
        with quiet, _short_warnings(verb):
            result = module.run(args, out)
    except AttlasError as error:
        print(f"attlas {verb}: {error}", file=sys.stderr)
        if os.environ.get("ATTLAS_DEBUG"):
            raise
        return 2
    except KeyboardInterrupt:
        print(f"attlas {verb}: interrupted", file=sys.stderr)
        return 130
    if out.as_json:
        from attlas.data.workspace import jsonable

        print(json.dumps(jsonable(result), ensure_ascii=False, allow_nan=False))
    return 0
