"""`attlas features`: what a sparse autoencoder's features do, whose heads' they are, and what another makes of them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from attlas.analyses.features.config import FeaturesConfig
from attlas.cli.common import Output
from attlas.cli.inputs import DataArgs
from attlas.cli.options import ModelArgs, OutArgs


@dataclass(frozen=True)
class Args(DataArgs, ModelArgs, OutArgs):
    """Interpret a sparse autoencoder: examples, heads, attribution, logits, families.

    describe: all of that for every feature (the default). survey: each head's top features, in groups, over all of the
    workspace's autoencoders of this model: how many unrelated things does a head do? match: which features of --sae are
    the same, split or absorbed in --other.

    For example:

        attlas features --workspace workspace --n-tokens 100000
        attlas features survey --workspace workspace
        attlas features match --sae RUN --other OTHER-RUN
    """

    what: Annotated[Literal["describe", "survey", "match"], tyro.conf.Positional] = "describe"
    """What to do."""
    n_tokens: int = 16_384
    """How many tokens to use; rare features need more."""
    sae: str | None = None
    """A run id of the workspace, a path, or saelens:RELEASE/ID; by default every SAE of the newest training
    (survey: of the workspace; match: the newest one)."""
    hook: str | None = None
    """Where it sits; by default the hook it was trained on."""
    other: str | None = None
    """match: the autoencoder to compare with, named as --sae is."""
    checkpoint: Path | None = None
    """describe: file to keep the state of a long pass in; the same command goes on from it."""
    config: Annotated[FeaturesConfig, tyro.conf.arg(name="")] = field(default_factory=FeaturesConfig)


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    found: dict[str, Any] = importlib.import_module(f"attlas.cli.features.{args.what}").run(args, out)
    return found
