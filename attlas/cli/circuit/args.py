"""Options of `attlas circuit`, a class for each sub-verb."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from attlas.analyses.circuits.config import DLAConfig, PatchingConfig, TraceConfig
from attlas.cli.inputs import SAEArgs
from attlas.cli.options import FLAT, ChatArgs, ModelArgs, OutArgs


@dataclass(frozen=True)
class PromptArgs(ChatArgs):
    """The prompts: a task's, or one's own."""

    task: str = "induction-natural"
    """Prompts with known answers (`attlas circuit tasks` lists them); not read when --prompt is given."""
    n_prompts: int = 16
    """How many prompts of the task."""
    variant: str = "mixed"
    """ioi: abba, baba or mixed."""
    corruption: str = "abc"
    """ioi: how the corrupted prompts differ: abc, s2 or swap."""
    min_accuracy: float = 0.7
    """Refuse a model that gets fewer of the task's prompts right; 0 never refuses."""
    prompt: str | None = None
    """Your own prompt; it ends where the answer should come."""
    answer: str | None = None
    """The right next token, with the space it begins with; by default the model's most likely one."""
    wrong: str | None = None
    """A wrong next token, for a logit difference; without it the metric is the answer's logit."""
    corrupted: str | None = None
    """A prompt of the same number of tokens to patch from."""


@dataclass(frozen=True)
class Tasks(ModelArgs):
    """List the tasks, or score the model on one: its accuracy, and its metric with a 95 % interval over prompts.

    For example:

        attlas circuit tasks --task ioi --model smollm2-135m --n-prompts 64
    """

    task: str | None = None
    """Score this one; "all" scores each; without it the tasks are only listed."""
    n_prompts: int = 32
    """How many prompts."""
    variant: str = "mixed"
    """ioi: abba, baba or mixed."""
    seed: int = 0
    """Seed of the prompts and of the interval."""
    json: bool = False
    """Print the result as JSON on stdout."""


@dataclass(frozen=True)
class Patch(SAEArgs, PromptArgs, ModelArgs, OutArgs):
    """Change one place of the forward pass after the other and measure the task's metric, beside a gradient estimate.

    Places: layers, layer × position, layer × head, or SAE features (with --sae). What is put there: the other prompt's
    activation, zero, the mean, or another prompt's.

    For example:

        attlas circuit patch --model gpt2-mini --task induction --by head
        attlas circuit patch --prompt "Anna met Tom and" --corrupted "Anna met Ben and" --by position
    """

    patching: Annotated[PatchingConfig, FLAT] = field(default_factory=PatchingConfig)


@dataclass(frozen=True)
class Dla(SAEArgs, PromptArgs, ModelArgs, OutArgs):
    """Split the logit difference into what each layer, head or feature adds directly (the final norm frozen).

    For example:

        attlas circuit dla --model smollm2-135m --task ioi --by head
    """

    config: Annotated[DLAConfig, FLAT] = field(default_factory=DLAConfig)


@dataclass(frozen=True)
class Trace(SAEArgs, PromptArgs, ModelArgs, OutArgs):
    """Trace a logit difference, or a feature, back through attention to the tokens; nothing is lost on the way.

    Layers with an autoencoder (--sae) are split into features, the others into heads.

    For example:

        attlas circuit trace --model gpt2-mini --task induction --row 3 --to circuit.json
        attlas circuit trace --prompt "the cat sat on the mat. the cat" --depth 3
        attlas circuit trace -m smollm2-135m --prompt "When Anna met Tom, Tom gave a ring to" --answer " Anna" --wrong " Tom"
    """

    row: int = 0
    """Which of the task's prompts."""
    feature: str | None = None
    """Trace this feature instead of the answer: layer/feature@position, such as 2/831@5."""
    attention: bool = True
    """Also explain where the strongest heads attend, by keys and queries."""
    faithful: bool = False
    """Also trace every prompt of the task, and ablate what is outside the circuits, what is inside, and random ones."""
    out: Annotated[Path | None, tyro.conf.arg(name="to", aliases=["--out"])] = None
    """Also write the graph here: .json, .graphml, or .ct.json for circuit-tracer's viewer."""
    seed: int = 0
    """Seed of the prompts, the random circuits and the intervals."""
    config: Annotated[TraceConfig, FLAT] = field(default_factory=TraceConfig)


@dataclass(frozen=True)
class Qk(SAEArgs, PromptArgs, ModelArgs, OutArgs):
    """Split one attention score into pairs of terms, one at the destination and one at the source.

    For example:

        attlas circuit qk --model gpt2-mini --task induction --row 3 --layer 3 --head 0 --src 14
    """

    layer: int | None = None
    """Layer of the head; without --layer and --head the one that adds most to this prompt's answer is taken, and named."""
    head: int | None = None
    """The (query) head."""
    dest: int = -1
    """Destination position; negative ones count from the end."""
    src: int | None = None
    """Source position; by default where the head looks most from --dest, the first token aside."""
    row: int = 0
    """Which of the task's prompts."""
    top_n: int = 100
    """Pairs listed; the rest is one row."""
    seed: int = 0
    """Seed of the prompts."""


@dataclass(frozen=True)
class Ablate(SAEArgs, PromptArgs, ModelArgs, OutArgs):
    """Take parts out of one prompt's pass, all later layers seeing them gone, beside random parts of the same kinds.

    Heads 3.0@17, features 3/63@17 (with --sae), "mlp 2@4", "error 3@17"; @ is the position, negative ones count from the end.

    For example:

        attlas circuit ablate --model gpt2-mini --task induction --row 3 --parts 3.0@-1 3.4@-1
    """

    parts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PART [PART ...]")] = ()
    """What to take out."""
    row: int = 0
    """Which of the task's prompts."""
    controls: int = 20
    """Random draws: other heads of the same layers, other active features of the same autoencoders. 0 leaves them out."""
    seed: int = 0
    """Seed of the prompts and of the draws."""
