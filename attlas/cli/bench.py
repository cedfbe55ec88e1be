"""`attlas bench`: our speed beside our peers', measured here and now."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from attlas.cli.common import Output
from attlas.errors import ConfigError, nearest

NAMES = (
    "sae_step",
    "encode",
    "attention_stats",
    "capture",
    "head_ablation",
    "tracker_overhead",
    "pruned_speed",
)
# What takes a quarter of an hour and measures no speed: run when named alone.
ON_REQUEST = ("feature_labels",)
# What can be measured beside spinning processes.
BUSY = ("sae_step", "capture")


@dataclass(frozen=True)
class Args:
    """Measure speed beside SAELens, torch and TransformerLens, what EntropyTracker costs a training loop, and pruned models
    beside the whole ones.

    Contestants run in interleaved rounds in one process; the table shows median, quartiles, best, each one's median
    slowdown against ours, the memory a run adds, and the job's GFLOP/s and GB/s with their share of this device's peak.
    Needs a checkout: the benchmarks are not part of the wheel.

    For example:

        attlas bench sae_step encode --rounds 5
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """sae_step, encode, attention_stats, capture, head_ablation, tracker_overhead, pruned_speed; all when none is named.
    feature_labels (families of trained, random and shuffled dictionaries, 15 minutes) when it is named."""
    rounds: int = 7
    """How often each contestant runs."""
    busy: int = 0
    """sae_step and capture: measure idle, and beside so many processes that spin."""
    json: bool = False
    """Print the numbers as JSON on stdout."""


def run(args: Args, out: Output) -> dict[str, Any]:
    known = NAMES + ON_REQUEST
    unknown = [name for name in args.names if name not in known]
    if unknown:
        raise ConfigError(f"no benchmark '{unknown[0]}'{nearest(unknown[0], known)} (there are {', '.join(known)})")
    if args.rounds < 1:
        raise ConfigError(f"rounds is {args.rounds}; it must be at least 1")
    names = args.names or (BUSY if args.busy else NAMES)
    if args.busy < 0 or (args.busy and set(names) - set(BUSY)):
        raise ConfigError(f"busy is {args.busy}; it must be at least 0, and measures {' and '.join(BUSY)} alone")
    folder = _folder()
    sys.path.insert(0, str(folder))
    try:
        environment = importlib.import_module("common").environment()
        more = (args.busy,) if args.busy else ()
        results = {name: importlib.import_module(name).run(args.rounds, *more) for name in names}
    finally:
        sys.path.remove(str(folder))
    return {"environment": environment, **results}


def _folder() -> Path:
    """The checkout's benchmarks/: beside the package, or below the working folder."""
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "benchmarks" / "common.py").exists():
            return root / "benchmarks"
    raise ConfigError("no benchmarks/ folder here; run `attlas bench` in a checkout of the repository")
