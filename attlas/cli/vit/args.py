"""Options of the sub-verbs of `attlas vit`: each analysis's own configuration, and the images it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from attlas.analyses.vit.config import VitConfig, VitPatternsConfig, VitPruningConfig, VitTokensConfig
from attlas.cli.options import FLAT, ClassArgs, ModelArgs, OutArgs


@dataclass(frozen=True)
class _Seen(ModelArgs, ClassArgs):
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "vit-mini"
    """vit-mini, dinov2-small (after `attlas models get`), a local Hugging Face folder, or a hub id."""
    images: str = "auto"
    """embedded:glyphs, sklearn:samples, a folder (subfolders are classes) or an .npz; auto suits the model."""
    n_images: int = 800
    """How many images, drawn by the seed."""


@dataclass(frozen=True)
class Heads(_Seen, OutArgs):
    """Rank the heads of a vision model by pruning them one at a time, and measure how far each looks.

    For example:

        attlas vit --model vit-mini --n-images 500 --workspace workspace
        attlas vit heads --measure importance --ablations zero
        attlas vit --model CLIP-FOLDER --images FOLDER --zero-shot
    """

    config: Annotated[VitConfig, FLAT] = field(default_factory=VitConfig)


@dataclass(frozen=True)
class Pruning(_Seen, OutArgs):
    """Remove heads in groups: greedily, by rank and at random.

    For example:

        attlas vit pruning --max-heads 8 --n-candidates 4
    """

    config: Annotated[VitPruningConfig, FLAT] = field(default_factory=VitPruningConfig)


@dataclass(frozen=True)
class Tokens(_Seen, OutArgs):
    """Measure the attention that patches receive, the answers without them, and attention rollout on trial.

    For example:

        attlas vit tokens --remove-at 1 --fractions 0 0.5 0.9
    """

    config: Annotated[VitTokensConfig, FLAT] = field(default_factory=VitTokensConfig)


@dataclass(frozen=True)
class Patterns(_Seen, OutArgs):
    """Draw single-query attention maps of all heads; code, cluster and lay them out.

    For example:

        attlas vit patterns --model vit-mini --n-maps 2400
    """

    config: Annotated[VitPatternsConfig, FLAT] = field(default_factory=VitPatternsConfig)
