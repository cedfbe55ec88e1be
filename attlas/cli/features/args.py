"""Options of the sub-verbs of `attlas features`: each analysis's own configuration, and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from attlas.analyses.features.config import FeaturesConfig, HeadSurveyConfig, MatchingConfig
from attlas.cli.inputs import DataArgs, JudgedArgs
from attlas.cli.options import FLAT, ChatArgs, ModelArgs, OutArgs, TextArgs


@dataclass(frozen=True)
class Describe(JudgedArgs, ModelArgs, OutArgs):
    """Interpret every feature of a sparse autoencoder: examples, heads, attribution, logits, families.

    For example:

        attlas features --workspace workspace --n-tokens 100000
        attlas features describe --sae RUN --n-top 20
    """

    n_tokens: int = 16_384
    """How many tokens to use; rare features need more."""
    sae: str | None = None
    """A run id of the workspace, a path, RELEASE/PATH (attlas models saes), or saelens:RELEASE/ID;
    by default every SAE of the newest training."""
    hook: str | None = None
    """Where it sits; by default the hook it was trained on."""
    checkpoint: Path | None = None
    """File to keep the state of a long pass in; the same command goes on from it."""
    config: Annotated[FeaturesConfig, FLAT] = field(default_factory=FeaturesConfig)


@dataclass(frozen=True)
class Survey(TextArgs, ModelArgs, OutArgs):
    """Group each head's top features, over the workspace's autoencoders of a model: how many unrelated things does a head do?

    For example:

        attlas features survey --workspace workspace
        attlas features survey --min-phi 0.2 --n-features 20
    """

    n_tokens: int = 16_384
    """How many tokens to use; rare features need more."""
    sae: str | None = None
    """A run id of the workspace: the survey is of its model's autoencoders; by default the newest."""
    hook: str | None = None
    """Survey this hook alone, such as blocks.1.attn.hook_z."""
    config: Annotated[HeadSurveyConfig, FLAT] = field(default_factory=HeadSurveyConfig)


@dataclass(frozen=True)
class Match(DataArgs, ModelArgs, OutArgs):
    """Find which features of one autoencoder are the same, split or absorbed in another on the same hook.

    For example:

        attlas features match --sae RUN --other OTHER-RUN
    """

    n_tokens: int = 16_384
    """How many tokens to use; rare features need more."""
    sae: str | None = None
    """A run id of the workspace, a path, RELEASE/PATH (attlas models saes), or saelens:RELEASE/ID;
    by default the newest of the workspace."""
    other: str | None = None
    """The autoencoder to compare with, named as --sae is."""
    hook: str | None = None
    """Where they sit; by default the hook that they were trained on."""
    config: Annotated[MatchingConfig, FLAT] = field(default_factory=MatchingConfig)


@dataclass(frozen=True, kw_only=True)
class Firing(ChatArgs, ModelArgs, OutArgs):
    """Find which features of the workspace's autoencoders fire on a text, the strongest for them first.

    For example:

        attlas features firing "the white whale, and the white" --workspace workspace
        attlas features firing "Call me Ishmael." --at 3 --n 40
    """

    prompt: Annotated[str, tyro.conf.Positional]
    """The text, at most 512 tokens."""
    sae: tuple[str, ...] = ()
    """Run ids of the workspace, folders, or saelens:RELEASE/ID; by default the newest of each hook of the model."""
    at: int | None = None
    """Only what fires at this token, from 0."""
    n: int = 20
    """Rows shown; with --json all are given."""
    skip: int = 1
    """First positions left out: attention rests there, and many features always fire."""
