"""Options of the sub-verbs of `attlas heads`: each one's own configuration, and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from attlas.analyses.heads.config import HeadsConfig, LogitsConfig, ProjectConfig, SimilarConfig
from attlas.analyses.heads.weight_config import WeightsConfig
from attlas.cli.inputs import DataArgs, JudgedArgs
from attlas.cli.options import FLAT, ModelArgs, OutArgs


@dataclass(frozen=True)
class Measure(DataArgs, ModelArgs, OutArgs):
    """Read every head over a corpus: scores, what its mass is spent on, and the sequences that show it.

    For example:

        attlas heads --model gpt2-mini --n-tokens 131072
        attlas heads --model vit-mini --n-images 200 --n-top 20
    """

    checkpoint: Path | None = None
    """File to keep the state of a long pass in; the same command goes on from it."""
    config: Annotated[HeadsConfig, FLAT] = field(default_factory=HeadsConfig)


@dataclass(frozen=True)
class Weights(ModelArgs, OutArgs):
    """Read what every head is by its weights: OV and QK, copying, token pairs, composition with earlier heads.

    For example:

        attlas heads weights --model gpt2-mini
    """

    config: Annotated[WeightsConfig, FLAT] = field(default_factory=WeightsConfig)


@dataclass(frozen=True)
class Effects(JudgedArgs, ModelArgs, OutArgs):
    """Measure what every head is worth on a corpus: the loss without it, and what it adds to the next token's logit by itself.

    For example:

        attlas heads effects --model gpt2-mini --n-tokens 16384
        attlas heads effects --ablations zero mean resample
    """

    config: Annotated[LogitsConfig, FLAT] = field(default_factory=LogitsConfig)
    ablations: tuple[str, ...] = ("zero", "mean")
    """Of zero, mean, mean_per_position, resample, identity, taylor, taylor_abs; none for logits alone."""


@dataclass(frozen=True)
class Similar(DataArgs, ModelArgs, OutArgs):
    """Find heads that are alike, in one model or between two: by pattern on the same data, and by their weights.

    For example:

        attlas heads similar --model gpt2-mini --n-tokens 16384
        attlas heads similar --other data/models/gpt2-mini/checkpoints/step-00250
    """

    other: str | None = None
    """A second model or checkpoint that reads the same tokens or images."""
    config: Annotated[SimilarConfig, FLAT] = field(default_factory=SimilarConfig)


@dataclass(frozen=True)
class Project(DataArgs, ModelArgs, OutArgs):
    """Project the queries, keys, values and answers of pairs that every head attends between, drawn by weight.

    For example:

        attlas heads project --model gpt2-mini --n-tokens 16384
        attlas heads project --n-points 300 --map tsne --map-heads 3.0 3.4
    """

    config: Annotated[ProjectConfig, FLAT] = field(default_factory=ProjectConfig)


@dataclass(frozen=True)
class Import(OutArgs):
    """Read a HeadVis data tree, such as one that Neuronpedia offers, into the workspace.

    For example:

        attlas heads import headvis-tree
    """

    tree: tyro.conf.Positional[Path] = Path("headvis")
    """Folder of config.json, scatter_data.json and heads/."""
