"""`attlas train`: sparse autoencoders on a model's activations, one or a grid of them, from the same forward passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

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

        attlas train --arch lorsa --layer 3 --k 16

        attlas train --plan --model llama-3.1-8b --dtype bfloat16 --d-sae 262144 --gpu h100 --gpus 8
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
    layer: int | None = None
    """With --arch lorsa: the layer whose attention it stands for, in place of hooks; by default 2."""
    n_qk_heads: int | None = None
    """With --arch lorsa: query–key heads, among which the features are dealt out; by default as many as the layer has."""
    d_qk_head: int | None = None
    """With --arch lorsa: width of queries and keys; by default the layer's."""
    qk_start: Literal["layer", "random"] = "layer"
    """With --arch lorsa: start from the layer's own queries, keys and outputs, or at random."""
    trust_remote_code: bool = False
    """Run code that lies beside the model's weights; it can do anything. Without this it is never run."""
    resume: bool = False
    """Go on from the last checkpoint of the same configuration in this workspace."""
    plan: bool = False
    """Train nothing; print what this configuration takes on GPUs (memory, operations, traffic, hours) and what does not fit."""
    gpu: str = "h100"
    """With --plan: the GPU, such as h100, h200, a100, a100-40, l40s or rtx4090."""
    gpu_memory: float | None = None
    """With --plan: GB of a GPU's memory, where they are not the named one's."""
    gpus: int = 1
    """With --plan: how many, one process each."""
    parallel: Literal["auto", "hooks", "data", "features"] = "auto"
    """How the processes of torchrun (or, with --plan, the GPUs) share the work: whole autoencoders, the rows of a batch, or
    the features of an autoencoder; auto takes hooks where every process gets one, else data."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Do it, with what a help text need not wait for."""
    from attlas.cli.train import work

    return work.run(args, out)
