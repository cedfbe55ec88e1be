"""`attlas entropy`: how sharply each head attends, what its maps are made of, and how that came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from attlas.analyses.attention.config import EntropyConfig
from attlas.cli.common import ModelArgs, OutArgs, Output, open_model, open_workspace
from attlas.cli.inputs import DataArgs, load_data

if TYPE_CHECKING:
    from attlas.data.workspace import Run, Workspace

What = Literal["heads", "anatomy", "timeline", "selection", "window-loss", "cost", "collapse-demo"]


@dataclass(frozen=True)
class Args(DataArgs, ModelArgs, OutArgs):
    """Measure the entropy of every head's attention, its lower bound, and where the mass goes.

    heads: entropy, bound and masses (the default). anatomy: what each map is made of, with head types. timeline: heads
    over the checkpoints of a training. selection: whose keys a layer could share. window-loss: what a layer loses with
    sinks and a window alone. cost: attention against FFN by length. collapse-demo: train two small models until their
    entropy collapses, and with σReparam, which prevents it.

    For example:

        attlas entropy --model gpt2-mini --workspace workspace
        attlas entropy --checkpoints data/models/gpt2-mini/checkpoints
        attlas entropy collapse-demo --seeds 0 1 2
    """

    what: Annotated[What, tyro.conf.Positional] = "heads"
    """What to measure."""
    n_tokens: int = 16_384
    """How many tokens to use: 64 sequences of 256; the table holds the interval over them."""
    config: Annotated[EntropyConfig, tyro.conf.arg(name="")] = field(default_factory=EntropyConfig)
    checkpoints: Path | None = None
    """timeline: folder of Hugging Face checkpoints such as checkpoint-500/; implies timeline, and --model is not read."""
    final_step: int | None = None
    """timeline: step of the model in that folder or its parent, where its trainer_state.json or README does not say."""
    windows: tuple[int, ...] = ()
    """anatomy, window-loss: widths of the local windows, positions; by default 8 16 64, and 8 32 (images: 2 4 hops)."""
    top_k: tuple[int, ...] = ()
    """anatomy, selection: numbers of keys; by default 1 4 16, and 16."""
    sinks: int = 4
    """window-loss: first positions that stay visible."""
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """cost: sequence lengths."""
    repeats: int = 7
    """cost: timed passes of each."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """collapse-demo: seeds; each trains both models twice."""
    demo_models: tuple[str, ...] = ("vit", "lm")
    """collapse-demo: vit, lm or both."""
    demo_steps: int = 0
    """collapse-demo: training steps of each; 0 for 600 (vit) and 250 (lm)."""
    qk_gain: float = 1.0
    """collapse-demo: factor on the initial W_Q and W_K."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    what = "timeline" if args.checkpoints is not None else args.what
    return _RUN[what](args, out)


def _done(saved: Run, workspace: Workspace, summary: dict[str, Any], out: Output) -> dict[str, Any]:
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return {"run": saved.id, **summary}


def _heads(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.attention.head_entropy import entropy

    workspace, model = open_workspace(args), open_model(args, out)
    data = load_data(model, args, args.config.seed)
    result = entropy(model, data, args.config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    columns = result.columns
    shown = ("entropy", "normalized", "lower_bound", "sink_mass", "previous_token", "induction")
    sharpest = np.argsort(columns["entropy"], axis=None)[:8]
    rows = []
    for flat in sharpest:
        at = np.unravel_index(flat, columns["entropy"].shape)
        rows.append((f"{at[0]}.{at[1]}", *[float(columns[name][at]) for name in shown]))
    out.table(f"{model.name}: sharpest heads ({result.n_queries:,} queries; entropy in nats)", ["head", *shown], rows)
    return _done(saved, workspace, result.summary(), out)


def _anatomy(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.attention.anatomy import AnatomyConfig, map_anatomy

    workspace, model = open_workspace(args), open_model(args, out)
    data = load_data(model, args, args.config.seed)
    plain = AnatomyConfig()
    config = AnatomyConfig(
        windows=args.windows or plain.windows,
        top_k=args.top_k or plain.top_k,
        batch_size=args.config.batch_size,
        skip_first=args.config.skip_first,
        seed=args.config.seed,
    )
    result = map_anatomy(model, data, config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    shown = ("label", "label_score", "entropy", "sink_mass", "local", "repeat_previous_token", "repeat_induction")
    table = result.table().to_pylist()
    rows = [(f"{r['layer']}.{r['head']}", *[r[name] for name in shown]) for r in table if r["label"] != "unassigned"]
    out.table(f"{model.name}: labelled heads ({result.n_queries:,} queries)", ["head", *shown], rows[:24])
    return _done(saved, workspace, result.summary(), out)


def _timeline(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.attention.head_timeline import TimelineConfig, find_checkpoints, timeline
    from attlas.errors import ConfigError

    if args.checkpoints is None:
        raise ConfigError("timeline needs --checkpoints DIR, a folder of Hugging Face checkpoints")
    workspace = open_workspace(args)
    checkpoints = find_checkpoints(args.checkpoints, args.final_step)
    used: list[Any] = []

    def data(model: Any) -> Any:
        used.append(load_data(model, args, args.config.seed))
        return used[0]

    config = TimelineConfig(batch_size=args.config.batch_size, seed=args.config.seed)
    result = timeline(checkpoints, data, config, track=out.track, device=args.device)
    saved = result.save(workspace, data=used[0].ref)
    rows = [(f"{b.layer}.{b.head}", b.after, b.by, b.score, b.null) for b in result.births()]
    shown = ["head", "after step", "by step", "score at the end", "null"]
    out.table("induction heads: the score stays above its null from then on", shown, rows)
    return _done(saved, workspace, result.summary(), out)


def _selection(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.attention.selection import SelectionConfig, selection_layers

    workspace, model = open_workspace(args), open_model(args, out)
    data = load_data(model, args, args.config.seed)
    config = SelectionConfig(top_k=args.top_k or SelectionConfig().top_k, batch_size=args.config.batch_size)
    result = selection_layers(model, data, config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    rows, k = [], config.top_k[0]
    if result.n_queries[k]:
        for n_full in range(1, model.cfg.n_layers + 1):
            best = result.partition(n_full)
            full = " ".join(str(i) for i, s in enumerate(best.selector) if s == i)
            rows.append((n_full, best.value, full))
    title = f"{model.name}: best partitions when a layer keeps {k} keys"
    out.table(title, ["full layers", "mean coverage", "which"], rows[:12])
    return _done(saved, workspace, result.summary(), out)


def _window_loss(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.attention.windows import WindowConfig, window_loss

    workspace, model = open_workspace(args), open_model(args, out)
    data = load_data(model, args, args.config.seed)
    widths = args.windows or ((2, 4) if model.cfg.family == "vit" else WindowConfig().windows)
    config = WindowConfig(widths, args.sinks, args.config.batch_size, args.config.seed)
    result = window_loss(model, data, config, track=out.track)
    saved = result.save(workspace, model.ref, data.ref)
    table = result.table().to_pylist()
    rows = [("all" if r["layer"] < 0 else r["layer"], r["window"], r["delta"], r["low"], r["high"]) for r in table]
    title = f"{model.name}: rise of the loss, nats (base {result.base_loss:.3f}, {result.sinks} sinks)"
    out.table(title, ["layer", "window", "rise", "low", "high"], rows)
    return _done(saved, workspace, result.summary(), out)


def _cost(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.attention.cost import CostConfig, cost_profile

    workspace, model = open_workspace(args), open_model(args, out)
    result = cost_profile(model, CostConfig(lengths=args.lengths, repeats=args.repeats), track=out.track)
    saved = result.save(workspace, model.ref)
    rows = [(length, value, 1 - value) for length, value in result.share().items()]
    title = f"{model.name}: share of the time on {result.device} ({result.threads} threads)"
    out.table(title, ["tokens", "attention", "FFN"], rows)
    return _done(saved, workspace, result.summary(), out)


def _collapse_demo(args: Args, out: Output) -> dict[str, Any]:
    from attlas.analyses.stability.collapse import CollapseConfig, collapse_demo

    workspace = open_workspace(args)
    steps: dict[str, Any] = {"vit_steps": args.demo_steps, "lm_steps": args.demo_steps} if args.demo_steps else {}
    config = CollapseConfig(models=args.demo_models, seeds=args.seeds, qk_gain=args.qk_gain, **steps)
    result = collapse_demo(config, track=out.track)
    saved = result.save(workspace)
    shown = ("model", "method", "seed", "final_loss", "final_normalized", "collapsed_heads", "first_collapse")
    rows = [[row[name] for name in shown] for row in result.runs.to_pylist()]
    out.table("training loss (nats) and normalised entropy at the end", shown, rows)
    return _done(saved, workspace, result.summary(), out)


_RUN = {
    "heads": _heads,
    "anatomy": _anatomy,
    "timeline": _timeline,
    "selection": _selection,
    "window-loss": _window_loss,
    "cost": _cost,
    "collapse-demo": _collapse_demo,
}
