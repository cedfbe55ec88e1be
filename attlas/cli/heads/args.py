"""Options of the sub-verbs of `attlas heads`: each one's own configuration, and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from attlas.analyses.heads.config import HeadsConfig
from attlas.analyses.heads.weight_config import WeightsConfig
from attlas.cli.inputs import DataArgs
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
class Import(OutArgs):
    """Read a HeadVis data tree, such as one that Neuronpedia offers, into the workspace.

    For example:

        attlas heads import headvis-tree
    """

    tree: tyro.conf.Positional[Path] = Path("headvis")
    """Folder of config.json, scatter_data.json and heads/."""
