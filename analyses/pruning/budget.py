"""How much of a ranking to drop: by count, share of parameters, KV cache or time, or the most that keeps the loss."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from attlas.analyses.pruning.scores import LossMeter
from attlas.analyses.pruning.surgery import build, check_prunable
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.errors import AttlasError, ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.drop import Drop, Unit, masked


@dataclass(frozen=True)
class Budget:
    """One way to say how much goes; give exactly one.

    Attributes:
        n: this many units.
        parameters: as few units as take away this share of the parameters (embeddings counted).
        kv_bytes: as few as take away this share of the KV cache.
        latency: as few as take away this share of the time of a forward pass, measured.
        max_delta_ce: as many as keep the loss within this many nats of the dense model's; the search ends at the
            first count that does not.
    """

    n: int | None = None
    parameters: float | None = None
    kv_bytes: float | None = None
    latency: float | None = None
    max_delta_ce: float | None = None

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"give exactly one of n, parameters, kv_bytes, latency, max_delta_ce, not {given or 'none'}"
            )
        if self.n is not None and self.n < 1:
            raise ConfigError(f"n {self.n} must be 1 or more")
        for name in ("parameters", "kv_bytes", "latency"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ConfigError(f"{name} {share} must be a share between 0 and 1")
        if self.max_delta_ce is not None and self.max_delta_ce < 0:
            raise ConfigError(f"max_delta_ce {self.max_delta_ce} must be 0 or more")


@dataclass(frozen=True)
class Selection:
    """What a budget picks from an order.

    Attributes:
        units: dropped, in order.
        saved: the share of what was asked for that goes (parameters, KV bytes, time), or Δ loss in nats; None for n.
        tried: (units, value) at every count that was measured.
    """

    units: tuple[Unit, ...]
    saved: float | None
    tried: tuple[tuple[int, float], ...] = ()


def select(
    model: AnyModel,
    order: Sequence[Unit],
    budget: Budget,
    evaluation: TokenDataset | ImageDataset,
    *,
    format: str = "compact",
    batch_size: int = 8,
    track: Track = no_track,
) -> Selection:
    """The prefix of `order` that a budget asks for.

    Args:
        order: units, first to drop first.
        evaluation: what loss and time are measured on.

    Raises:
        ConfigError: the budget asks for more than can be dropped, or no unit keeps the loss.

    Example:
        >>> from attlas.analyses.pruning import Budget, select
        >>> order = [("attn", 2), ("attn", 1), ("attn", 0)]
        >>> select(model, order, Budget(kv_bytes=0.5), text).units
        (('attn', 2), ('attn', 1))
    """
    model = as_hooked(model)
    if budget.n is not None:
        if budget.n > len(order):
            raise ConfigError(f"cannot drop {budget.n} of {len(order)} in {model.name}")
        return Selection(tuple(order[: budget.n]), None)
    if budget.max_delta_ce is not None:
        return _within_loss(model, order, budget.max_delta_ce, evaluation, batch_size, track)
    if budget.latency is not None:
        sample = evaluation.tensor[:batch_size]
        saving, wanted, what = _time_saving(model, sample), budget.latency, "time"
    elif budget.kv_bytes is not None:
        saving, wanted, what = _kv_saving(model), budget.kv_bytes, "KV cache"
    else:
        saving, wanted, what = _parameter_saving(model), budget.parameters or 0.0, "parameters"
    tried: list[tuple[int, float]] = []
    for n in track(range(1, len(order) + 1), f"{what} saved"):
        drop = Drop.of(order[:n], model.cfg.n_heads, model.cfg.n_kv_heads)
        try:
            check_prunable(model, drop, format)
        except AttlasError:
            break
        tried.append((n, saving(build(model, drop, format)[0])))
        if tried[-1][1] >= wanted - 1e-9:
            return Selection(tuple(order[:n]), tried[-1][1], tuple(tried))
    most = max((value for _, value in tried), default=0.0)
    raise ConfigError(
        f"cannot save {wanted:.0%} of the {what} of {model.name} so; at most {most:.0%} ({format} format)"
    )


def _within_loss(
    model: HookedModel,
    order: Sequence[Unit],
    limit: float,
    evaluation: TokenDataset | ImageDataset,
    batch_size: int,
    track: Track,
) -> Selection:
    meter = LossMeter(model, evaluation, batch_size)
    tried: list[tuple[int, float]] = []
    for n in track(range(1, max(2, len(order))), "loss kept"):
        with masked(model, Drop.of(order[:n], model.cfg.n_heads, model.cfg.n_kv_heads)):
            tried.append((n, meter.measure().total[0] - meter.whole.total[0]))
        if tried[-1][1] > limit:
            break
    kept = [entry for entry in tried if entry[1] <= limit]
    if not kept:
        raise ConfigError(f"dropping one costs {tried[0][1]:.4f} nats already; allow more than max_delta_ce {limit}")
    n, delta = kept[-1]
    return Selection(tuple(order[:n]), delta, tuple(tried))


def _parameter_saving(model: HookedModel) -> Callable[[Any], float]:
    dense = n_parameters(model.hf)
    return lambda hf: 1 - n_parameters(hf) / dense


def _kv_saving(model: HookedModel) -> Callable[[Any], float]:
    if not model.cfg.causal:
        raise ConfigError(f"{model.name} keeps no KV cache; choose another budget")
    dense = kv_bytes_per_token(model.hf)
    return lambda hf: 1 - kv_bytes_per_token(hf) / dense


def _time_saving(model: HookedModel, sample: Tensor) -> Callable[[Any], float]:
    def saved(hf: Any) -> float:
        dense, pruned = forward_seconds((model.hf, hf), sample)
        return 1 - pruned / dense

    return saved


def n_parameters(hf: Any) -> int:
    """Parameters, tied weights once."""
    return sum(p.numel() for p in hf.parameters())


@torch.no_grad()
def kv_bytes_per_token(hf: Any) -> int:
    """Bytes of keys and values that one token leaves in the cache, by running one."""
    found = hf(torch.zeros(1, 1, dtype=torch.long, device=next(hf.parameters()).device), use_cache=True)
    cache = found["cache"] if "cache" in found else found.past_key_values  # the name before transformers 5.2
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


@torch.no_grad()
def forward_seconds(models: Sequence[Any], inputs: Tensor, repeats: int = 5) -> list[float]:
    """Median time of a forward pass of each model; they take turns, so that a busy machine slows all alike."""
    times: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + 1):
        for slot, hf in enumerate(models):
            parameter = next(hf.parameters())
            x = inputs.to(parameter.device)
            if x.is_floating_point():
                x = x.to(parameter.dtype)
            extra = {} if x.is_floating_point() else {"use_cache": False}
            if x.is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            hf(x, **extra)
            if x.is_cuda:
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                times[slot].append(time.perf_counter() - start)
    return [statistics.median(values) for values in times]
