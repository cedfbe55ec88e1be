"""What to drop, in which order: rankings, budgets, and the controls that a ranking has to beat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from attlas.errors import ConfigError, LayerRangeError
from attlas.interp import HookedModel

# (module, layer), module being attn, mlp or block; or ("head", layer · n_heads + head)
Unit = tuple[str, int]
TARGETS = ("attn", "mlp", "joint", "block", "head")


@dataclass(frozen=True)
class Drop:
    """Parts of a model to leave out; a norm goes with its module.

    Attributes:
        attn, mlp: layers whose attention or MLP is dropped, alone.
        blocks: layers dropped whole.
        heads: (layer, head) pairs.
    """

    attn: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    heads: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, units: Sequence[Unit], n_heads: int = 0) -> Drop:
        """From units; `n_heads` tells the layer of a head."""
        kinds = ("attn", "mlp", "block", "head")
        pick = {kind: sorted(number for module, number in units if module == kind) for kind in kinds}
        heads = tuple((number // n_heads, number % n_heads) for number in pick["head"])
        return cls(tuple(pick["attn"]), tuple(pick["mlp"]), tuple(pick["block"]), heads)

    def __bool__(self) -> bool:
        return bool(self.attn or self.mlp or self.blocks or self.heads)

    def check(self, model: HookedModel) -> None:
        """Raise where a layer or head is not there, or is named twice.

        Raises:
            LayerRangeError, ConfigError.
        """
        for name, layers in (("attn", self.attn), ("mlp", self.mlp), ("blocks", self.blocks)):
            if len(set(layers)) != len(layers):
                raise ConfigError(f"{name} {list(layers)} names a layer twice")
            for layer in layers:
                model.layer(layer)
        if twice := set(self.blocks) & (set(self.attn) | set(self.mlp)):
            raise ConfigError(f"layer {min(twice)} is dropped whole and in part; name it once")
        if len(set(self.heads)) != len(self.heads):
            raise ConfigError(f"heads {[f'{layer}.{head}' for layer, head in self.heads]} name a head twice")
        for layer, head in self.heads:
            model.layer(layer)
            if not 0 <= head < model.cfg.n_heads:
                raise LayerRangeError(f"head {head} is out of range; {model.name} has heads 0–{model.cfg.n_heads - 1}")


def units(target: str, n_layers: int, n_heads: int = 0) -> list[Unit]:
    """All droppable units of a target: attn, mlp, joint (both), block or head.

    Raises:
        ConfigError: the target is unknown.
    """
    if target not in TARGETS:
        raise ConfigError(f"target '{target}' is unknown; choose {', '.join(TARGETS)}")
    modules = ("attn", "mlp") if target == "joint" else (target,)
    return [(module, i) for module in modules for i in range(n_layers * (n_heads if target == "head" else 1))]


def unit_name(unit: Unit, n_heads: int) -> str:
    """attn.3, mlp.3, block.3, head.3.5"""
    module, number = unit
    return f"head.{number // n_heads}.{number % n_heads}" if module == "head" else f"{module}.{number}"


def ranked(scores: dict[Unit, float]) -> list[Unit]:
    """The most redundant first; ties to the later layer."""
    return sorted(scores, key=lambda unit: (scores[unit], -unit[1]))


def last_first(candidates: Sequence[Unit]) -> list[Unit]:
    """Control: the last layers first (of a layer, the MLP before the attention)."""
    return sorted(candidates, key=lambda unit: (-unit[1], unit[0] != "mlp"))


def random_order(candidates: Sequence[Unit], seed: int) -> list[Unit]:
    """Control: any order."""
    return [candidates[i] for i in np.random.default_rng(seed).permutation(len(candidates))]


@contextlib.contextmanager
def masked(model: HookedModel, drop: Drop) -> Iterator[HookedModel]:
    """The model with parts silenced in memory: their outputs are zero, nothing is removed.

    Raises:
        LayerRangeError, ConfigError: see `Drop.check`.
    """
    drop.check(model)
    heads: dict[int, list[int]] = {}
    for layer, head in drop.heads:
        heads.setdefault(layer, []).append(head)

    def silence(tensor: Tensor, _name: str) -> Tensor:
        return tensor.new_zeros(tensor.shape)

    def silence_heads(tensor: Tensor, name: str) -> Tensor:
        tensor = tensor.clone()
        tensor[:, :, heads[int(name.split(".")[1])]] = 0
        return tensor

    names = [f"blocks.{layer}.hook_attn_out" for layer in {*drop.attn, *drop.blocks}]
    names += [f"blocks.{layer}.hook_mlp_out" for layer in {*drop.mlp, *drop.blocks}]
    with model.hooks(
        {**dict.fromkeys(names, silence), **{f"blocks.{layer}.attn.hook_z": silence_heads for layer in heads}}
    ):
        yield model
