"""`attlas entropy`: how sharply each head attends, what its maps are made of, and how that came about."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from attlas.analyses.attention.config import EntropyConfig
from attlas.cli.common import Output
from attlas.cli.inputs import DataArgs
from attlas.cli.options import ModelArgs, OutArgs

What = Literal["heads", "anatomy", "timeline", "selection", "window-loss", "cost", "collapse-demo"]

_FILES = {"window-loss": "windows", "collapse-demo": "collapse"}  # where a file has another name


@dataclass(frozen=True)
class Args(DataArgs, ModelArgs, OutArgs):
    """Measure the entropy of every head's attention, its lower bound, and where the mass goes.

    heads: entropy, bound and masses (the default). anatomy: what each map is made of, with head types. timeline: heads
    over the checkpoints of a training. selection: whose keys a layer could share. window-loss: what a layer loses with
    sinks and a window alone. cost: attention against FFN by length. collapse-demo: train two small models until their
    entropy collapses, and with σReparam, which prevents it.

    For example:

        attlas entropy --model gpt2-mini --workspace workspace
        attlas entropy --checkpoints data/models/gpt2-mini/checkpoints
        attlas entropy collapse-demo --seeds 0 1 2
    """

    what: Annotated[What, tyro.conf.Positional] = "heads"
    """What to measure."""
    n_tokens: int = 16_384
    """How many tokens to use: 64 sequences of 256; the table holds the interval over them."""
    config: Annotated[EntropyConfig, tyro.conf.arg(name="")] = field(default_factory=EntropyConfig)
    checkpoints: Path | None = None
    """timeline: folder of Hugging Face checkpoints such as checkpoint-500/; implies timeline, and --model is not read."""
    final_step: int | None = None
    """timeline: step of the model in that folder or its parent, where its trainer_state.json or README does not say."""
    windows: tuple[int, ...] = ()
    """anatomy, window-loss: widths of the local windows, positions; by default 8 16 64, and 8 32 (images: 2 4 hops)."""
    top_k: tuple[int, ...] = ()
    """anatomy, selection: numbers of keys; by default 1 4 16, and 16."""
    sinks: int = 4
    """window-loss: first positions that stay visible."""
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """cost: sequence lengths."""
    repeats: int = 7
    """cost: timed passes of each."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """collapse-demo: seeds; each trains both models twice."""
    demo_models: tuple[str, ...] = ("vit", "lm")
    """collapse-demo: vit, lm or both."""
    demo_steps: int = 0
    """collapse-demo: training steps of each; 0 for 600 (vit) and 250 (lm)."""
    qk_gain: float = 1.0
    """collapse-demo: factor on the initial W_Q and W_K."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    what = "timeline" if args.checkpoints is not None else args.what
    found: dict[str, Any] = importlib.import_module(f"attlas.cli.entropy.{_FILES.get(what, what)}").run(args, out)
    return found
