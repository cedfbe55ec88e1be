"""What `attlas prune` does: checks, then drop curves, or one pruned model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attlas.analyses.pruning.checkpoint import check_folder
from attlas.analyses.pruning.curve import drop_curve
from attlas.analyses.pruning.scores import LossMeter
from attlas.analyses.pruning.surgery import check_format, check_prunable
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_data, with_classes
from attlas.cli.prune.args import check_budget
from attlas.cli.prune.lm_eval import check_lm_eval
from attlas.cli.prune.one import prune_config, prune_one
from attlas.data.disk import check_writable
from attlas.data.images.dataset import ImageDataset
from attlas.data.models_catalog import resolve_model
from attlas.data.text import load_tokens
from attlas.errors import ConfigError
from attlas.interp.drop import Drop

if TYPE_CHECKING:
    from attlas.cli.prune.args import Args
    from attlas.data.text import TokenDataset
    from attlas.interp import HookedModel


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show, export."""
    named = Drop.parse(args.drop)
    check_budget(args)
    if args.out is not None:
        if not (named or args.target):
            raise ConfigError(f"nothing to write to '{args.out}': say what goes with --drop, or --target and a budget")
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
    check_lm_eval(args)
    if (args.zero_shot or args.classes) and (named or args.target):
        raise ConfigError("--zero-shot is for drop curves: give no --drop and no --target; prune the tower without it")
    config = prune_config(args) if named or args.target else None
    workspace = open_workspace(args)
    model = open_model(args, out)
    if model.cfg.family != "vit":
        model.require_head("loss that says what dropping costs")
    if named:
        check_prunable(model, named, args.format)
    elif args.target is not None:
        check_format(model, args.format, args.target)
    calibration, evaluation = _data(model, args)
    model = with_classes(model, args, evaluation)
    if not LossMeter.has_loss(model, evaluation):
        headless = {"--heal-steps": args.heal_steps, "--target head or group": args.target in ("head", "group")}
        headless |= {"--targets head or group": bool({"head", "group"} & {*args.curve.targets}) and not args.target}
        if needs := next((flag for flag, given in headless.items() if given), None):
            raise ConfigError(f"{needs} needs a loss, and {model.name} has no head or the images no labels")
    if config is None:
        return _curve(model, calibration, evaluation, args, workspace, out)
    return prune_one(model, calibration, evaluation, config, args, workspace, out)


def _data(model: HookedModel, args: Args) -> tuple[TokenDataset | ImageDataset, TokenDataset | ImageDataset]:
    """(calibration, evaluation)"""
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
        packed=not args.pad,
        chat=args.chat,
    )
    if both:  # one source: no sequence may both calibrate and measure
        return calibration.split(args.calibration_tokens / wanted, args.curve.seed)
    return calibration, evaluation


def _curve(
    model: HookedModel, calibration: Any, evaluation: Any, args: Args, workspace: Any, out: Output
) -> dict[str, Any]:
    result = drop_curve(model, calibration, evaluation, args.curve, track=out.track)
    saved = result.save(workspace, model, evaluation.ref)
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
    return done(saved, workspace, {**result.summary(), "rows": result.rows, "control": result.control}, out)


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
