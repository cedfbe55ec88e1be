"""`attlas prune`: drop modules, measure what it costs, export a smaller checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from attlas.analyses.pruning.curve_config import DropCurveConfig
from attlas.cli.common import ModelArgs, OutArgs, Output, open_model, open_workspace
from attlas.cli.inputs import DataArgs, load_data
from attlas.data.disk import check_writable
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.analyses.pruning.budget import Budget
    from attlas.analyses.pruning.orders import Drop
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.text import TokenDataset
    from attlas.interp import HookedModel

BUDGETS = ("n", "max_delta_ce", "save_parameters", "save_kv", "save_time")


@dataclass(frozen=True)
class Args(DataArgs, ModelArgs, OutArgs):
    """Drop attention, MLPs, blocks or heads: measure what it costs, and write a smaller checkpoint that transformers opens.

    Three ways: name what goes (--drop), let scores choose (--target and one budget: --n, --max-delta-ce,
    --save-parameters, --save-kv or --save-time), or, with neither, measure drop curves beside controls. Losses are taken
    on --text, scores on --calibration (a source given for both is divided); of images, half of every class calibrates and
    the other half measures.

    Example: attlas prune --model gpt2-mini --target attn --n 2 --format compact --out gpt2-mini-pruned
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
    """Budget: as many as keep the loss within so many nats of the whole model's, on half of --text; the other half tells."""
    save_parameters: float | None = None
    """Budget: this share of the parameters, 0–1."""
    save_kv: float | None = None
    """Budget: this share of the KV cache, 0–1."""
    save_time: float | None = None
    """Budget: this share of the time of a forward pass, 0–1, measured here."""
    format: Literal["stock", "compact"] = "compact"
    """stock loads anywhere, but modules dropped alone are only silenced; compact lacks them, with its own code."""
    out: Path | None = None
    """Folder for the pruned checkpoint; nothing is written without it."""
    force: bool = False
    """Replace an earlier pruned checkpoint in --out; folders that attlas prune did not write are never touched."""
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
    """Also tell what the pruned model loses (before healing): features of --sae, tasks, and what heads do."""
    sae: tuple[str, ...] = ()
    """Autoencoders for --what-dies: run ids of the workspace, folders, or saelens:RELEASE/ID."""
    lm_eval: tuple[str, ...] = ()
    """Run these lm-evaluation-harness tasks before and after (extra lm-eval); attlas_ioi and attlas_induction need no data."""
    lm_eval_path: Path | None = None
    """Folder with lm-eval task definitions of your own (.yaml); code in them runs."""
    lm_eval_limit: int | None = None
    """At most so many documents of each lm-eval task."""
    n_prompts: int = 32
    """Prompts of each task for --what-dies, and of attlas_ioi and attlas_induction."""
    curve: Annotated[DropCurveConfig, tyro.conf.arg(name="")] = field(default_factory=DropCurveConfig)


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show, export."""
    from attlas.analyses.pruning.checkpoint import check_folder
    from attlas.analyses.pruning.scores import Judge
    from attlas.analyses.pruning.surgery import check_format, check_prunable
    from attlas.cli.prune.lm_eval import lm_eval_config

    named, budget = parse_drop(args.drop), _budget(args)
    if args.out is not None:
        if not (named or args.target):
            raise ConfigError(f"nothing to write to '{args.out}': say what goes with --drop, or --target and a budget")
        from attlas.data.models_catalog import resolve_model

        check_folder(args.out, args.force, resolve_model(args.model).folder)
        check_writable(args.out.absolute().parent)
    if args.heal_steps and not (named or args.target):
        raise ConfigError("healing needs a pruned model: give --drop, or --target and a budget")
    if args.order == "angular" and args.target not in (None, "block"):
        raise ConfigError(f"--order angular drops runs of blocks; give --target block, not {args.target}")
    if args.sae and not args.what_dies:
        raise ConfigError("--sae belongs to --what-dies; give both")
    if args.what_dies and not (named or args.target):
        raise ConfigError("--what-dies needs a pruned model: give --drop, or --target and a budget")
    if args.lm_eval and not (named or args.target):
        raise ConfigError("--lm-eval needs a pruned model: give --drop, or --target and a budget")
    lm_eval = lm_eval_config(args)
    workspace = open_workspace(args)
    model = open_model(args, out)
    if model.cfg.family != "vit":
        model.require_head("loss that says what dropping costs")
    if named:
        check_prunable(model, named, args.format)
    elif args.target is not None:
        check_format(model, args.format, args.target)
    calibration, evaluation = _data(model, args)
    if not Judge.has_loss(model, evaluation):
        headless = {"--heal-steps": args.heal_steps, "--target head or group": args.target in ("head", "group")}
        headless |= {"--targets head or group": bool({"head", "group"} & {*args.curve.targets}) and not args.target}
        if needs := next((flag for flag, given in headless.items() if given), None):
            raise ConfigError(f"{needs} needs a loss, and {model.name} has no head or the images no labels")
    if not named and args.target is None:
        return _curve(model, calibration, evaluation, args, workspace, out)
    from attlas.cli.prune.one import prune_one

    return prune_one(model, calibration, evaluation, named, budget, lm_eval, args, workspace, out)


def parse_drop(parts: tuple[str, ...]) -> Drop:
    """`attn:2,5` … → Drop.

    Raises:
        ConfigError: a part does not read so.
    """
    from attlas.analyses.pruning.orders import Drop

    found: dict[str, list[Any]] = {"attn": [], "mlp": [], "block": [], "head": []}
    for part in parts:
        module, _, numbers = part.partition(":")
        if module not in found or not numbers:
            raise ConfigError(f"--drop '{part}' is not understood; write attn:2,5 or mlp:3, block:1, head:0.4,1.2")
        for number in numbers.split(","):
            try:
                found[module].append(tuple(int(n) for n in number.split(".", 1)) if module == "head" else int(number))
                if module == "head" and len(found[module][-1]) != 2:
                    raise ValueError
            except ValueError:
                kind = "layer.head" if module == "head" else "a layer"
                raise ConfigError(f"--drop '{part}': '{number}' is not {kind} number") from None
    return Drop(*(tuple(found[module]) for module in ("attn", "mlp", "block", "head")))


def _budget(args: Args) -> Budget | None:
    from attlas.analyses.pruning.budget import Budget

    given = [name for name in BUDGETS if getattr(args, name) is not None]
    if args.target is None:
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} needs --target: attn, mlp, joint, block or head")
        return None
    if args.drop:
        raise ConfigError("give --drop or --target, not both")
    if len(given) != 1:
        flags = ", ".join("--" + name.replace("_", "-") for name in BUDGETS)
        raise ConfigError(f"--target needs exactly one budget of {flags}")
    return Budget(args.n, args.save_parameters, args.save_kv, args.save_time, args.max_delta_ce)


def _data(model: HookedModel, args: Args) -> tuple[TokenDataset | ImageDataset, TokenDataset | ImageDataset]:
    """(calibration, evaluation)"""
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.text import load_tokens

    evaluation = load_data(model, args, args.curve.seed)
    if isinstance(evaluation, ImageDataset):
        if len(evaluation) < 2:
            raise ConfigError("one image cannot both calibrate and measure; give --n-images 2 or more")
        return evaluation.split(1 / 2, args.curve.seed)
    seq_len = model.cfg.sequence_length(args.seq_len)
    both = (args.calibration, args.calibration_split) == (args.text, args.split)
    wanted = args.calibration_tokens + (args.n_tokens if both else 0)
    calibration = load_tokens(
        args.calibration,
        model.tokenizer,
        seq_len=seq_len,
        n_tokens=wanted,
        seed=args.curve.seed,
        column=args.column if args.calibration == args.text else args.calibration_column,
        split=args.calibration_split,
        d_vocab=model.cfg.d_vocab,
    )
    if both:  # one source: no sequence may both calibrate and measure
        return calibration.split(args.calibration_tokens / wanted, args.curve.seed)
    return calibration, evaluation


def _curve(
    model: HookedModel, calibration: Any, evaluation: Any, args: Args, workspace: Any, out: Output
) -> dict[str, Any]:
    from attlas.analyses.pruning.curve import drop_curve

    result = drop_curve(model, calibration, evaluation, args.curve, track=out.track)
    saved = result.save(workspace, model.ref, evaluation.ref)
    rows = []
    for target in args.curve.targets:
        for order in args.curve.orders:
            cells = [_cell(*result.point(target, order, n)) for n in args.curve.counts]
            rows.append((f"{target}, {order}", *cells))
    dense = result.rows[0]
    out.table(
        f"{model.name}: Δ loss in nats (whole model {dense['loss']:.4f}; {dense['n_predictions']:,} predictions of "
        f"{dense['n_sequences']} sequences or images) with 95 % interval; of random the median and range over sets",
        ["dropped", *[str(n) for n in args.curve.counts]],
        rows,
    )
    if result.control:
        out.table(
            f"Random sets beside the ranking, on the same {result.control[0]['n_sequences']}: loss of the middle set less "
            "the ranking's, 95 % interval; sets are distinct, and none is the ranking's",
            ["dropped", "n", "random − ranked", "95 %", "sets that cost more", "sets there are"],
            [_beside(row) for row in result.control if row["order"] in ("ranked", "iterative")],
        )
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **result.summary(), "rows": result.rows, "control": result.control}


def _cell(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "none"
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low < high else "")


def _beside(row: dict[str, Any]) -> tuple[Any, ...]:
    """A line of the table of random sets."""
    interval = "none below 8" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    more = f"{row['n_draws'] - row['n_cheaper']} of {row['n_draws']}"
    there = f"{row['n_possible']}, all taken" if row["n_possible"] == row["n_draws"] else f"{row['n_possible']:,}"
    return f"{row['target']}, {row['order']}", row["n_dropped"], f"{row['excess']:+.3f}", interval, more, there
