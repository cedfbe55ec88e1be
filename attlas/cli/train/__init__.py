"""`attlas train`: sparse autoencoders on a model's activations, one or a grid of them, from the same forward passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from attlas.cli.common import Output
from attlas.cli.options import OutArgs
from attlas.saes.training.config import TrainConfig


@dataclass(frozen=True)
class Args(OutArgs):
    """Train sparse autoencoders, one for each hook, and write them to the workspace.

    The curve can be watched in `attlas serve` while training runs. An interrupted run goes on with --resume. With any
    --sweep option a grid is trained on the same activations and compared in a Pareto table.

    For example, every layer at once, and then a grid on one layer:

        attlas train --model gpt2-mini --hooks 'blocks.*.attn.hook_z' --arch topk --k 16 --n-tokens 1000000

        attlas train --hooks blocks.2.attn.hook_z --sweep-k 8 16 32 --sweep-width 768 1536
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    model_alias: Annotated[str | None, tyro.conf.arg(name="m", aliases=["-m"])] = None
    """Short for --model."""
    sweep_k: tuple[int, ...] = ()
    """Values of k to compare (TopK families)."""
    sweep_sparsity: tuple[float, ...] = ()
    """Values of λ to compare (standard, gated, jumprelu)."""
    sweep_width: tuple[int, ...] = ()
    """Numbers of features to compare."""
    sweep_seed: tuple[int, ...] = ()
    """Seeds of initial weights to compare (data and order are the same for all)."""
    resume: bool = False
    """Go on from the last checkpoint of the same configuration in this workspace."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Do it, with what a help text need not wait for."""
    from attlas.cli.train import work

    return work.run(args, out)
