"""Options of `attlas prune`, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from attlas.analyses.pruning.curve_config import BUDGETS, DropCurveConfig
from attlas.cli.inputs import JudgedArgs
from attlas.cli.options import FLAT, ModelArgs, OutArgs
from attlas.errors import ConfigError


@dataclass(frozen=True)
class Args(JudgedArgs, ModelArgs, OutArgs):
    """Drop attention, MLPs, blocks or heads: measure what it costs, and write a smaller checkpoint that transformers opens.

    Three ways: name what goes (--drop), let scores choose (--target and one budget: --n, --max-delta-ce,
    --save-parameters, --save-kv or --save-time), or, with neither, measure drop curves beside controls. Losses are taken
    on --text, scores on --calibration (a source given for both is divided); of images, half of every class calibrates and
    the other half measures.

    Example: attlas prune --model gpt2-mini --target attn --n 2 --format compact --to gpt2-mini-pruned
    Example: attlas prune --model gpt2-mini --drop attn:2 --what-dies --sae RUN
    Example: attlas prune --model gpt2-mini --drop attn:2 --lm-eval attlas_ioi attlas_induction
    """

    n_tokens: int = 8_192
    """How many tokens of --text losses are taken on."""
    drop: tuple[str, ...] = ()
    """What to drop, such as attn:2,5 mlp:3 block:1 head:0.4,1.2 (layers from 0; heads as layer.head)."""
    target: Literal["attn", "mlp", "joint", "block", "head", "group"] | None = None
    """Let the scores choose among these; a group is a KV head with all heads that share it, which frees its cache."""
    order: Literal["ranked", "iterative", "random", "last", "reversed", "angular"] = "ranked"
    """In which order they go; iterative scores anew after each (slow), random, last and reversed are controls; angular drops
    the run of blocks that turns the stream least (--target block; Gromov et al. 2024)."""
    n: int | None = None
    """Budget: how many."""
    max_delta_ce: float | None = None
    """Budget: as many as keep the loss within so many nats of the whole model's, on half of --text; the rest measures it."""
    save_parameters: float | None = None
    """Budget: this share of the parameters, 0–1."""
    save_kv: float | None = None
    """Budget: this share of the KV cache, 0–1."""
    save_time: float | None = None
    """Budget: this share of the time of a forward pass, 0–1, measured here."""
    format: Literal["stock", "compact"] = "compact"
    """stock loads anywhere, but modules dropped alone are only silenced; compact lacks them, with its own code."""
    out: Annotated[Path | None, tyro.conf.arg(name="to", aliases=["--out"])] = None
    """Folder for the pruned checkpoint; nothing is written without it."""
    force: bool = False
    """Replace an earlier pruned checkpoint in --to; folders that attlas prune did not write are never touched."""
    calibration: str = "embedded:train"
    """Text that scores are taken on and healing trains on; as --text."""
    calibration_column: str | None = None
    """Its column; --column where it is the source of --text."""
    calibration_split: str | None = None
    """Its split."""
    calibration_tokens: int = 8_192
    """How much of it."""
    heal_steps: int = 0
    """Train the pruned model for so many steps on the calibration data before it is written."""
    heal_objective: Literal["distill", "ce"] = "distill"
    """Learn from the whole model's outputs, or from the text (labels) itself."""
    heal_lr: float = 3e-4
    """Peak learning rate of healing."""
    what_dies: bool = False
    """Also measure what the pruned model loses (before healing): features of --sae, tasks, and what heads do."""
    sae: tuple[str, ...] = ()
    """Autoencoders for --what-dies: run ids, folders, RELEASE/PATH (attlas models saes), or saelens:RELEASE/ID."""
    lm_eval: tuple[str, ...] = ()
    """Run these lm-evaluation-harness tasks before and after (extra lm-eval); attlas_ioi and attlas_induction need no data."""
    lm_eval_path: Path | None = None
    """Folder with lm-eval task definitions of your own (.yaml); code in them runs."""
    lm_eval_limit: int | None = None
    """At most so many documents of each lm-eval task."""
    n_prompts: int = 32
    """Prompts of each task for --what-dies, and of attlas_ioi and attlas_induction."""
    curve: Annotated[DropCurveConfig, FLAT] = field(default_factory=DropCurveConfig)


def check_budget(args: Args) -> None:
    """Refuse a target without one budget, and a budget without a target.

    Raises:
        ConfigError: says which options to give.
    """
    given = [name for name in BUDGETS if getattr(args, name) is not None]
    if args.target is None:
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} needs --target: attn, mlp, joint, block or head")
        return
    if args.drop:
        raise ConfigError("give --drop or --target, not both")
    if len(given) != 1:
        flags = ", ".join("--" + name.replace("_", "-") for name in BUDGETS)
        raise ConfigError(f"--target needs exactly one budget of {flags}")
