"""Options of the sub-verbs of `attlas entropy`: each analysis's own configuration, and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from attlas.analyses.attention.config import (
    AnatomyConfig,
    CostConfig,
    EntropyConfig,
    SelectionConfig,
    TimelineConfig,
    WindowConfig,
)
from attlas.analyses.stability.config import CollapseConfig
from attlas.cli.inputs import DataArgs
from attlas.cli.options import FLAT, ClassArgs, ModelArgs, OutArgs, PlanArgs


@dataclass(frozen=True)
class _Measured(DataArgs):
    n_tokens: int = 16_384
    """How many tokens to use: 64 sequences of 256; intervals are over the sequences."""


@dataclass(frozen=True)
class Heads(PlanArgs, _Measured, ModelArgs, OutArgs):
    """Measure the entropy of every head's attention, its lower bound, and where the mass goes.

    For example:

        attlas entropy --model gpt2-mini --workspace workspace
        attlas entropy heads --model vit-mini --n-images 200
        attlas entropy heads --plan --model llama-3.1-8b --dtype bfloat16 --seq-len 4096 --gpu a100-40
    """

    config: Annotated[EntropyConfig, FLAT] = field(default_factory=EntropyConfig)


@dataclass(frozen=True)
class Anatomy(_Measured, ModelArgs, OutArgs):
    """Measure what each attention map is made of, and name the head's type with its score.

    For example:

        attlas entropy anatomy --model gpt2-mini --windows 8 32
    """

    config: Annotated[AnatomyConfig, FLAT] = field(default_factory=AnatomyConfig)


@dataclass(frozen=True)
class Timeline(_Measured, OutArgs):
    """Measure the heads at every checkpoint of a training, one model in memory at a time.

    Stopped, the same command goes on after the checkpoints that are measured.

    For example:

        attlas entropy timeline --checkpoints data/models/gpt2-mini/checkpoints
        attlas entropy timeline --model EleutherAI/pythia-160m --revisions step1000 step4000 step143000
    """

    checkpoints: Path | None = None
    """Folder of Hugging Face checkpoints such as checkpoint-500/."""
    revisions: tuple[str, ...] = ()
    """In place of --checkpoints: revisions of --model, as folders of these names below it or on the hub."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = ""
    """With --revisions: a hub id, or a folder with a folder a revision."""
    final_step: int | None = None
    """Step of the model in that folder or its parent, or of a revision without a number, where nothing says it."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes CUDA when there is one."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    config: Annotated[TimelineConfig, FLAT] = field(default_factory=TimelineConfig)


@dataclass(frozen=True)
class Selection(_Measured, ModelArgs, OutArgs):
    """Measure whose keys a layer could share: attention mass on the keys that another layer selects.

    For example:

        attlas entropy selection --model gpt2-mini --top-k 8 16
    """

    seed: int = 0
    """Seed of the order in which the data is drawn."""
    config: Annotated[SelectionConfig, FLAT] = field(default_factory=SelectionConfig)


@dataclass(frozen=True)
class Windows(_Measured, ClassArgs, ModelArgs, OutArgs):
    """Measure what a layer loses when it sees the first positions and a local window alone (also: window-loss).

    For example:

        attlas entropy windows --model gpt2-mini --windows 16 64 --sinks 2
    """

    config: Annotated[WindowConfig, FLAT] = field(default_factory=WindowConfig)


@dataclass(frozen=True)
class Cost(ModelArgs, OutArgs):
    """Time attention against the feed-forward network, by length.

    For example:

        attlas entropy cost --model gpt2-mini --lengths 256 1024
    """

    config: Annotated[CostConfig, FLAT] = field(default_factory=CostConfig)


@dataclass(frozen=True)
class Collapse(OutArgs):
    """Train two small models until their entropy collapses, and with σReparam, which prevents it (also: collapse-demo).

    For example:

        attlas entropy collapse --seeds 0 1 2
        attlas entropy collapse --models lm --lm-steps 100 --qk-gain 2
    """

    config: Annotated[CollapseConfig, FLAT] = field(default_factory=CollapseConfig)
