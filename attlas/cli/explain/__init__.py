"""`attlas explain`: labels of features and heads by a language model, and how well they tell."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Annotated, Any

from attlas.analyses.explain.config import ExplainConfig
from attlas.cli.common import Output
from attlas.cli.options import FLAT, ModelArgs, OutArgs, TextArgs


@dataclass(frozen=True)
class Args(TextArgs, ModelArgs, OutArgs):
    """Label features or heads by a language model from their examples, and score each label on held-out ones.

    The explainer is a model on this machine (--explainer), or one behind an address (--endpoint); nothing is sent anywhere
    unless an endpoint is named. Scores are balanced accuracies of detection and fuzzing, 0.5 being chance, beside those with
    another feature's label. Answers are kept in the workspace: the same command goes on where it ended, and asks nothing twice.

    For example:

        attlas explain --explainer smollm2-135m --features 746 12 --workspace workspace
        attlas explain --endpoint http://localhost:8000/v1 --endpoint-model qwen --top 20 --max-requests 500
        attlas explain --explainer smollm2-135m --heads 3.0 3.4 --to-notes
    """

    n_tokens: int = 32_768
    """How many tokens to cut excerpts from."""
    sae: str | None = None
    """A run id of the workspace, a path, RELEASE/PATH or saelens:RELEASE/ID; by default the newest of the workspace."""
    features: tuple[int, ...] = ()
    """These features."""
    top: int | None = None
    """The features with the largest activations, so many."""
    starred: bool = False
    """The features (with --heads all: the heads) that notes give a star."""
    n: int = 10
    """Where none of these is given: so many features, drawn by the seed from those that fire."""
    heads: tuple[str, ...] = ()
    """Heads in place of features, such as 3.0 3.4, or all; from the newest run of `attlas heads`."""
    explainer: str | None = None
    """A language model on this machine: embedded or fetched (`attlas models`), or a Hugging Face folder."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible server, such as http://localhost:8000/v1: excerpts of the text are sent there. Its key,
    if it needs one, is read from ATTLAS_API_KEY or OPENAI_API_KEY."""
    endpoint_model: str = ""
    """Name that the endpoint knows the model by."""
    timeout: float = 120.0
    """Seconds that one request to the endpoint may take."""
    max_requests: int | None = None
    """Send at most so many requests; what is kept already costs nothing."""
    max_tokens: int | None = None
    """Send no further request after answers that cost so many tokens, prompts included."""
    to_notes: bool = False
    """Take the labels over into the notes, where no person wrote a label."""
    config: Annotated[ExplainConfig, FLAT] = field(default_factory=ExplainConfig)


def run(args: Args, out: Output) -> dict[str, Any]:
    """Do it, with what a help text need not wait for."""
    found: dict[str, Any] = importlib.import_module(f"{__name__}.work").run(args, out)
    return found
