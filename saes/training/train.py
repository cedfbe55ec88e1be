"""Train sparse autoencoders on a model's activations: many hooks from the same forward passes."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attlas.data.processes.group import ALONE, Group
from attlas.data.progress import Track, no_track, terminal_track
from attlas.data.workspace import Ref
from attlas.interp import AnyModel, as_hooked, load_model
from attlas.interp.load import find_device
from attlas.interp.wrappers.placed import on_several
from attlas.kernels.gpu import resolve_precision
from attlas.saes.activations import head_shape, vector_hooks
from attlas.saes.identity import identity
from attlas.saes.inputs import load_inputs
from attlas.saes.positions import positions_for
from attlas.saes.scaling.plan import check_share, share_form
from attlas.saes.training.ahead import DEPTH, AheadSource
from attlas.saes.training.buffer import MixingBuffer
from attlas.saes.training.checkpoint import NOT_SHARED
from attlas.saes.training.clock import Clock
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.loop import train_loop
from attlas.saes.training.notebook_curve import notebook_curve
from attlas.saes.training.parallel.share import Share
from attlas.saes.training.parallel.sources import shared_source
from attlas.saes.training.parallel.start import begun
from attlas.saes.training.result import TrainResult
from attlas.saes.training.sources import model_source
from attlas.saes.training.store import adopt_store, store_source, stored_inputs
from attlas.saes.training.trainer import SAETrainer

if TYPE_CHECKING:
    from attlas.data.dataset import Dataset
    from attlas.interp import HookedModel

__all__ = ["TrainConfig", "train_sae"]

SAMPLE_TOKENS = 16_384  # for b_dec, the input scale and the active subspace


def train_sae(
    config: TrainConfig | None = None,
    *,
    model: AnyModel | None = None,
    data: Dataset | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    track: Track | None = None,
    progress: bool = True,
    group: Group = ALONE,
    parallel: str = "auto",
) -> TrainResult:
    """Train one SAE for every hook that the configuration names, all from the same forward passes.

    Args:
        config: what to train; its defaults train a TopK SAE on layer 2 of `gpt2-mini`.
        model: in place of config.model.
        data: tokens or images, in place of config.text or config.images.
        folder: where to keep the live curve (`training.jsonl`) and checkpoints; None keeps neither.
        resume: go on from the folder's checkpoint; the finished SAEs equal those of an uninterrupted run.
        track: what shows how far it is; by default a live curve in a notebook, a bar where stderr is a terminal.
        progress: False: neither.
        group: the processes that train together (attlas.data.processes.group.join); all call this with the same
            arguments. The first gets the result and writes; the others' results hold no autoencoder.
        parallel: how they share the work: "hooks" deals out whole SAEs, "data" the rows of a batch, "features" those of each
            SAE; "auto" takes hooks where every process gets one, else data.

    Raises:
        HookNameError: a hook matches nothing.
        ConfigError: sizes do not fit together.
        NonFiniteError: activations or a loss are NaN or infinite.

    Example:
        >>> from attlas import train_sae
        >>> from attlas.saes import TrainConfig
        >>> small = {"k": 4, "d_sae": 64, "n_tokens": 256, "batch_size": 64, "buffer_tokens": 256}
        >>> config = TrainConfig(hooks=("blocks.*.attn.hook_z",), **small)
        >>> result = train_sae(config, model=model, data=text)
        >>> result.saes["blocks.3.attn.hook_z"].W_dec.shape  # [features, heads · d_head]
        torch.Size([64, 192])
        >>> len(result.save(folder / "workspace"))  # a run a hook
        4
    """
    config = adopt_store(config or TrainConfig())
    if model is None:
        resolve_precision(config.precision, find_device(config.device))  # before anything is loaded
    track = track or (notebook_curve() if progress else None) or terminal_track(progress)
    if model is None:
        model = load_model(config.model, device=config.model_device or config.device, dtype=config.dtype)
    model = as_hooked(model)
    hooks = vector_hooks(model, config.hooks)
    if data is None and (data := stored_inputs(config)) is None:
        data = load_inputs(model, config)
    share = Share(group, share_form(parallel, group.size, len(hooks)), hooks)
    check_share(share.form, group.size, n_hooks=len(hooks), batch=config.batch_size)
    with contextlib.closing(make_buffer(model, data, hooks, config, track, share)) as buffer:
        sample = buffer.peek(SAMPLE_TOKENS)
        trainers = [start_trainer(hook, hook, model, sample[hook], config, data.ref, share) for hook in share.own]

        precision = trainers[0].precision
        kept = Path(folder) if folder is not None else None
        history = train_loop(
            trainers,
            buffer,
            config,
            folder=kept,
            resume=resume,
            identity=identity(model, data.ref) | {"precision": precision} if kept is not None else None,
            track=track,
            share=share,
        )
    return TrainResult(
        saes=share.finished({trainer.hook: trainer.finish() for trainer in trainers}),
        config=dataclasses.replace(config, precision=precision),
        model_ref=model.ref,
        data_ref=data.ref,
        history=history,
        ranks=share.values({trainer.hook: trainer.rank for trainer in trainers}),
        rates=share.values({trainer.hook: trainer.learning_rate for trainer in trainers}),
    )


def make_buffer(
    model: HookedModel,
    data: Dataset,
    hooks: Sequence[str],
    config: TrainConfig,
    track: Track = no_track,
    share: Share = NOT_SHARED,
) -> MixingBuffer:
    """The mixing buffer over the model itself, or over the on-disk store that the configuration names."""
    clock = Clock()
    depth = _depth(model, config)
    if config.store is not None:
        if share.dealt:
            store_source(model, data, hooks, config, track, share.group)  # written where it is not there, by all
        source = store_source(model, data, share.own or hooks, config, track, share.group)
        source = AheadSource(source, depth, model.device, clock, "data") if depth else source
    elif share.group.size > 1:  # exchanges rows with the others, in the order of its other exchanges
        source = shared_source(model, data, config, clock, share)
    elif depth:
        source = AheadSource(model_source(model, data, hooks, config), depth, model.device, clock)
    else:
        source = model_source(model, data, hooks, config, clock)
    dtype = getattr(torch, config.activation_dtype)
    apart = config.model_device is not None or on_several(model.hf)
    device = find_device(config.device) if apart else None
    return MixingBuffer(source, config.buffer_tokens, config.seed, dtype, device=device, clock=clock)


def _depth(model: HookedModel, config: TrainConfig) -> int:
    """How many chunks are made ahead."""
    if (
        on_several(model.hf) or config.precision == "tf32"
    ):  # TF32 is switched for the whole process, the model's products too
        return 0
    if config.capture_ahead is not None:
        return config.capture_ahead
    return DEPTH if model.device.type == "cuda" else 0


def start_trainer(
    name: str,
    hook: str,
    model: HookedModel,
    sample_ND: torch.Tensor,
    config: TrainConfig,
    data: Ref,
    share: Share = NOT_SHARED,
) -> SAETrainer:
    """A new SAE for a hook, or this process's part of it, initialised from a sample of its activations."""
    n_heads, d_head = head_shape(model, hook)
    positions = positions_for(model, config.skip_positions, config.exclude_tokens)
    cfg = config.sae_config(
        sample_ND.shape[-1],
        hook_name=hook,
        model_name=model.name,
        model_hash=model.weight_hash,
        n_heads=n_heads,
        d_head=d_head,
        context_size=None if model.cfg.family == "vit" else model.cfg.sequence_length(config.seq_len),
        data_name=data.name,
        data_hash=data.hash,
        skip_positions=positions.skip,
        exclude_tokens=positions.names,
    )
    return begun(
        share,
        name,
        hook,
        cfg,
        sample_ND,
        seed=config.seed,
        learning_rate=config.learning_rate(sample_ND.shape[-1]),
        normalise=config.normalise,
        active_subspace=config.active_subspace,
        variance=config.subspace_variance,
        encoder_scale=config.encoder_scale,
        fused=config.fused,
        lazy_adam=config.lazy_adam,
        precision=config.precision,
        graph=config.cuda_graph,
        clip=config.clip,
    )


def discard(folder: Path) -> None:
    """Remove a finished run's live curve and checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
