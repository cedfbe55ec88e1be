"""`attlas steer`: what a model writes while features or heads are raised, set or taken out."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from attlas.analyses.steering.config import SteerConfig
from attlas.cli.common import Output
from attlas.cli.options import ModelArgs, OutArgs, TextArgs

_USUAL = SteerConfig(features=(0,))


@dataclass(frozen=True)
class Args(TextArgs, ModelArgs, OutArgs):
    """Generate from a prompt while features of an autoencoder, or heads, are changed.

    Beside the text stand the model's own and one under a random direction that is as long at every position (the control),
    and how far both changes move the next token's distribution (KL) and the loss, on the prompt and on a corpus.

    For example:

        attlas steer --feature 746 --strength 5 --prompt "The captain said" --workspace workspace
        attlas steer --feature 746 --mode ablate --positions generated
        attlas steer --head 3.0 --mode ablate --prompt "one two three one two"
    """

    n_tokens: int = 4096
    """How many tokens of the corpus to measure on; 0 measures on the prompt alone."""
    sae: str | None = None
    """A run id of the workspace, a path, RELEASE/PATH or saelens:RELEASE/ID; by default the newest of the workspace."""
    hook: str | None = None
    """Where it sits; by default the hook it was trained on."""
    feature: tuple[int, ...] = ()
    """Features of the autoencoder, all changed alike."""
    head: tuple[str, ...] = ()
    """Heads, such as 3.0."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = "Once upon a time"
    """The text to go on from."""
    mode: str = _USUAL.mode
    """add (raise by the strength; of a head, z times 1 + strength), clamp (set to the strength), ablate (set to 0)."""
    strength: float = _USUAL.strength
    """In units of the feature's activation; of a head a factor."""
    positions: str = _USUAL.positions
    """all (but the first), or generated: from the prompt's last token on."""
    n_new: int = _USUAL.n_new
    """How many tokens to generate."""
    temperature: float = _USUAL.temperature
    """Of sampling; 0 takes the likeliest token."""
    seed: int = _USUAL.seed
    """Of sampling, and of the random direction."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Do it, with what a help text need not wait for."""
    found: dict[str, Any] = importlib.import_module(f"{__name__}.work").run(args, out)
    return found
