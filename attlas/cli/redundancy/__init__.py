"""`attlas redundancy`: which layers do little, which heads matter, and since when."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from attlas.analyses.redundancy.config import RedundancyConfig
from attlas.cli.common import Output
from attlas.cli.inputs import JudgedArgs
from attlas.cli.options import FLAT, ModelArgs, OutArgs


@dataclass(frozen=True)
class Args(JudgedArgs, ModelArgs, OutArgs):
    """Score how much every attention, MLP and block turns the residual stream; a low score marks a redundant one.

    With --alone also the loss without each module alone; with --heads what every head is worth, by ablation and by
    gradients; with --checkpoints, or --revisions of a model, each of these over a training.

    For example:

        attlas redundancy --model gpt2-mini --n-tokens 65536 --workspace workspace
        attlas redundancy --alone --heads --n-tokens 8192
        attlas redundancy --checkpoints data/models/gpt2-mini/checkpoints
        attlas redundancy --model EleutherAI/pythia-160m --revisions step1000 step4000 --heads
    """

    config: Annotated[RedundancyConfig, FLAT] = field(default_factory=RedundancyConfig)
    alone: bool = False
    """Also measure the loss without each attention, MLP and block alone."""
    heads: bool = False
    """Also measure every head: zero, mean and identity ablation, and first order from one gradient."""
    checkpoints: Path | None = None
    """Folder of Hugging Face checkpoints such as checkpoint-500/: score each; --model is not read."""
    revisions: tuple[str, ...] = ()
    """Revisions of --model, as folders of these names below it or on the hub: score each."""
    final_step: int | None = None
    """Step of the model in that folder or its parent, or of a revision without a number, where nothing says it."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Do it, with what a help text need not wait for."""
    from attlas.cli.redundancy import work

    return work.run(args, out)
