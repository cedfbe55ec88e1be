"""What `attlas train` does: one training or a grid, begun or gone on with, saved and shown."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output, open_model, open_workspace
from attlas.cli.options import ModelArgs
from attlas.cli.together import join
from attlas.cli.train import lorsa
from attlas.cli.train.folder import go_on, key, tell_what_resumes
from attlas.errors import ConfigError
from attlas.saes.scaling.plan import plan
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.history import live_folder
from attlas.saes.training.over_seeds import over_seeds
from attlas.saes.training.store import adopt_store, check_store
from attlas.saes.training.sweep import SweepConfig, sweep_saes
from attlas.saes.training.train import train_sae

if TYPE_CHECKING:
    from attlas.cli.train import Args
    from attlas.data.processes.group import Group
    from attlas.data.workspace import Workspace
    from attlas.interp import HookedModel


def run(args: Args, out: Output) -> dict[str, Any]:
    """Train, or train the grid that the sweep options ask for."""
    config = dataclasses.replace(args.train, model=args.model_alias) if args.model_alias else args.train
    if config.arch == "lorsa":
        return lorsa.run(args, config, out)
    lorsa.require_none(args)
    if args.plan:
        return _plan(args, config, out)
    config = adopt_store(config, out.given | ({"model"} if args.model_alias else set()))
    workspace = open_workspace(args)
    group = join(config.device)
    if args.sweep_k or args.sweep_sparsity or args.sweep_width or args.sweep_seed:
        if group.size > 1:
            raise ConfigError("a sweep runs in one process; start it without torchrun, or train its points one by one")
        return _sweep(args, config, workspace, out)
    return _train(args, config, workspace, group, out)


def _plan(args: Args, config: TrainConfig, out: Output) -> dict[str, Any]:
    memory = None if args.gpu_memory is None else args.gpu_memory * 1e9
    found = plan(config, device=args.gpu, memory=memory, processes=args.gpus, form=args.parallel)
    out.table("Nothing was run: what this training would take", ("", "", "how it is known"), found.rows())
    out.say("fits" if not found.misfits else f"does not fit: {'; '.join(found.misfits)}; {found.advice()}")
    return found.summary()


def _begin(config: TrainConfig, folder: Path, trust: bool, out: Output) -> HookedModel:
    """Check the store, say how an interrupted training goes on, and open the model."""
    if config.store is not None and not out.silent:
        check_store(config.store)
    out.how_to_go_on = lambda: go_on(folder, out)
    return open_model(
        ModelArgs(config.model, config.model_device or config.device, config.dtype, trust_remote_code=trust), out
    )


def _train(args: Args, config: TrainConfig, workspace: Workspace, group: Group, out: Output) -> dict[str, Any]:
    folder = live_folder(workspace.path, key(config))
    tell_what_resumes(args.resume, folder, workspace, out)
    model = _begin(config, folder, args.trust_remote_code, out)
    result = train_sae(
        config,
        model=model,
        folder=folder,
        resume=args.resume,
        track=out.track,
        group=group,
        parallel=args.parallel,
    )
    if not group.first:
        return {}
    runs = result.save(workspace)
    shutil.rmtree(folder, ignore_errors=True)
    summary = result.summary()
    out.table(
        f"SAEs on {config.model} ({config.n_tokens:,} tokens; numbers of the last training batch)",
        ("hook", "features", "learning rate", "L0", "EV", "dead"),
        [
            (hook, s["d_sae"], f"{s['learning_rate']:.2g}", s["l0"], s["explained_variance"], s["dead_fraction"])
            for hook, s in summary.items()
        ],
    )
    out.say(f"written to {workspace.path}: {', '.join(record.id for record in runs)}")
    return {"workspace": str(workspace.path), "runs": [record.id for record in runs], "saes": summary}


def _sweep(args: Args, config: TrainConfig, workspace: Workspace, out: Output) -> dict[str, Any]:
    sweep = SweepConfig(config, args.sweep_k, args.sweep_sparsity, args.sweep_width, args.sweep_seed)
    folder = live_folder(workspace.path, key(sweep))
    tell_what_resumes(args.resume, folder, workspace, out)
    model = _begin(config, folder, args.trust_remote_code, out)
    result = sweep_saes(sweep, model=model, folder=folder, resume=args.resume, track=out.track)
    record = result.save(workspace)
    shutil.rmtree(folder, ignore_errors=True)
    rows = sorted(result.rows, key=lambda row: (row["hook"], row["l0"]))
    out.table(
        f"Sweep on {config.model} ({config.n_tokens:,} tokens; measured on held-out data; * = Pareto front)",
        ("hook", "F", "k", "λ", "seed", "L0", "EV", "CE rec.", "dead", ""),
        [
            (
                r["hook"],
                r["d_sae"],
                r["k"],
                r["sparsity"],
                r["seed"],
                r["l0"],
                r["explained_variance"],
                "—" if r["ce_recovered"] is None else r["ce_recovered"],
                r["dead_fraction"],
                "*" if r["on_front"] else "",
            )
            for r in rows
        ],
    )
    seeds = over_seeds(result.rows)
    if seeds:
        names = ("hook", "d_sae", "k", "sparsity", "metric", "mean", "low", "high", "n_seeds")
        out.table(
            "Means over seeds, with 95 % intervals of another training (Student's t)",
            ("hook", "F", "k", "λ", "metric", "mean", "low", "high", "seeds"),
            [tuple(row[name] for name in names) for row in seeds],
        )
    return {"workspace": str(workspace.path), "runs": [record.id], "pareto": result.rows, "seeds": seeds}
