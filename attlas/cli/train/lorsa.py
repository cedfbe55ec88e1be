"""`attlas train --arch lorsa`: a low-rank sparse attention in place of a layer's, begun or gone on with, saved and shown."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output, open_model, open_workspace
from attlas.cli.options import ModelArgs
from attlas.cli.together import join
from attlas.cli.train.folder import go_on, key, tell_what_resumes
from attlas.data.models_catalog import lasting_name
from attlas.errors import ConfigError
from attlas.saes.lorsa.train import train_lorsa
from attlas.saes.lorsa.training_config import LorsaTrainConfig
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.history import live_folder

if TYPE_CHECKING:
    from attlas.cli.train import Args

_OWN = ("layer", "n_qk_heads", "d_qk_head", "qk_start")
_OF_SAES = ("sweep_k", "sweep_sparsity", "sweep_width", "sweep_seed", "plan")


def require_none(args: Args) -> None:
    """Raises ConfigError for an option that only a Lorsa has."""
    given = [name for name in _OWN if getattr(args, name) not in (None, "layer")]
    if given:
        option = given[0].replace("_", "-")
        raise ConfigError(
            f"--{option} is of --arch lorsa; an autoencoder is trained on --hooks, such as blocks.2.attn.hook_z"
        )


def run(args: Args, config: TrainConfig, out: Output) -> dict[str, Any]:
    """Train it, save it, show it."""
    odd = [name for name in _OF_SAES if getattr(args, name)]
    if odd:
        raise ConfigError(
            f"--{odd[0].replace('_', '-')} is for autoencoders; a Lorsa is trained one at a time, without it"
        )
    layer = LorsaTrainConfig.layer if args.layer is None else args.layer
    whole = LorsaTrainConfig(
        dataclasses.replace(config, model=lasting_name(config.model)),
        layer,
        args.n_qk_heads,
        args.d_qk_head,
        args.qk_start,
    )
    workspace = open_workspace(args)
    if join(config.device).size > 1:
        raise ConfigError("a Lorsa trains in one process; start it without torchrun")
    folder = live_folder(workspace.path, key(whole))
    tell_what_resumes(args.resume, folder, workspace, out)
    out.how_to_go_on = lambda: go_on(folder, out)
    opened = ModelArgs(config.model, config.device, config.dtype, trust_remote_code=args.trust_remote_code)
    result = train_lorsa(whole, model=open_model(opened, out), folder=folder, resume=args.resume, track=out.track)
    record = result.save(workspace)
    shutil.rmtree(folder, ignore_errors=True)
    s = result.summary()
    out.table(
        f"Lorsa on layer {layer} of {config.model} ({config.n_tokens:,} tokens; numbers of the last training batch)",
        ("stands for", "features", "query–key heads", "parameters", "learning rate", "L0", "EV", "dead"),
        [
            (
                s["hook"],
                s["d_sae"],
                s["n_qk_heads"],
                f"{s['n_parameters']:,}",
                f"{s['learning_rate']:.2g}",
                s["l0"],
                s["explained_variance"],
                s["dead_fraction"],
            )
        ],
    )
    out.say(f"written to {workspace.path}: {record.id}")
    return {"workspace": str(workspace.path), "runs": [record.id], "lorsa": s}
