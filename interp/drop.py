"""Parts of a model left out: how they are named, and a pass without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attlas.errors import ConfigError, LayerRangeError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.config import ModelConfig
from attlas.interp.names import layer_index
from attlas.interp.structure import linear_weight

# (module, layer), module being attn, mlp or block; ("head", layer · n_heads + head); or ("group", layer · n_kv_heads +
# kv head): a kv head with all the heads that share it
Unit = tuple[str, int]


TARGETS = ("attn", "mlp", "joint", "block", "head", "group")


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
    def of(cls, units: Sequence[Unit], n_heads: int = 0, n_kv_heads: int = 0) -> Drop:
        """From units; `n_heads` tells the layer of a head, `n_kv_heads` that of a group."""
        pick = {kind: sorted(number for module, number in units if module == kind) for kind in TARGETS}
        heads = [(number // n_heads, number % n_heads) for number in pick["head"]]
        for number in pick["group"]:
            heads += group_heads(number, n_heads, n_kv_heads)
        return cls(tuple(pick["attn"]), tuple(pick["mlp"]), tuple(pick["block"]), tuple(heads))

    @classmethod
    def parse(cls, parts: Sequence[str]) -> Drop:
        """From what `--drop` takes, such as ("attn:2,5", "mlp:3", "block:1", "head:0.4,1.2").

        Raises:
            ConfigError: a part does not read so.
        """
        found: dict[str, list[Any]] = {"attn": [], "mlp": [], "block": [], "head": []}
        for part in parts:
            module, _, numbers = part.partition(":")
            if module not in found or not numbers:
                raise ConfigError(f"--drop '{part}' is not understood; write attn:2,5 or mlp:3, block:1, head:0.4,1.2")
            for number in numbers.split(","):
                try:
                    found[module].append(
                        tuple(int(n) for n in number.split(".", 1)) if module == "head" else int(number)
                    )
                    if module == "head" and len(found[module][-1]) != 2:
                        raise ValueError
                except ValueError:
                    kind = "layer.head" if module == "head" else "a layer"
                    raise ConfigError(f"--drop '{part}': '{number}' is not {kind} number") from None
        return cls(*(tuple(found[module]) for module in ("attn", "mlp", "block", "head")))

    def parts(self) -> tuple[str, ...]:
        """What `parse` reads."""
        heads = [f"{layer}.{head}" for layer, head in self.heads]
        listed = {"attn": self.attn, "mlp": self.mlp, "block": self.blocks, "head": heads}
        return tuple(f"{module}:{','.join(map(str, numbers))}" for module, numbers in listed.items() if numbers)

    def names(self) -> list[str]:
        """attn.2, mlp.3, block.1, head.0.4 (layer.head), one a part."""
        split = [part.partition(":") for part in self.parts()]
        return [f"{module}.{number}" for module, _, numbers in split for number in numbers.split(",")]

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

    def check_new(self, model: HookedModel) -> None:
        """Refuse what is silent in the model already.

        Raises:
            ConfigError: names the first such part.
        """
        before = silent_parts(model)
        gone = [f"the attention of layer {layer}" for layer in self.attn if layer in before.attn]
        gone += [f"the MLP of layer {layer}" for layer in self.mlp if layer in before.mlp]
        gone += [
            f"head {layer}.{head}"
            for layer, head in self.heads
            if layer in before.attn or (layer, head) in before.heads
        ]
        if gone:
            raise ConfigError(f"{gone[0]} of {model.name} is silent already (dropped before); name another")

    def with_silent(self, model: HookedModel) -> Drop:
        """With what is silent in the model already, so that it is taken out too."""
        before = silent_parts(model)
        attn = tuple(sorted({*self.attn, *before.attn} - {*self.blocks}))
        mlp = tuple(sorted({*self.mlp, *before.mlp} - {*self.blocks}))
        heads = tuple(sorted(pair for pair in {*self.heads, *before.heads} if pair[0] not in {*attn, *self.blocks}))
        return Drop(attn, mlp, self.blocks, heads)


def group_heads(number: int, n_heads: int, n_kv_heads: int) -> list[tuple[int, int]]:
    """(layer, head) of the heads that share the kv head `number` = layer · n_kv_heads + kv head."""
    layer, kv = divmod(number, n_kv_heads)
    size = n_heads // n_kv_heads
    return [(layer, head) for head in range(kv * size, (kv + 1) * size)]


def last_linear(mlp: nn.Module) -> nn.Module:
    """The projection of an MLP back to the residual stream."""
    return [m for m in mlp.modules() if type(m).__name__ in ("Linear", "Conv1D")][-1]


def mlp_writes(mlp: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of the projection of an MLP, or of every expert of a mixture, back to the residual stream."""
    experts = getattr(mlp, "experts", None)
    if experts is None:
        return list(last_linear(mlp).parameters())
    return [p for name, p in experts.named_parameters() if name.startswith("down_proj")]


def silent_parts(model: HookedModel) -> Drop:
    """What adds nothing to the residual stream already: attention and MLPs whose output projection and bias are zero
    (dropped before in stock format, or absent), and heads whose rows of W_O are.
    """
    attn, mlp, heads = [], [], []
    for index, parts in enumerate(model.layers):
        if _zero(parts.out_proj.parameters()):
            attn.append(index)
        else:
            rows = linear_weight(parts.out_proj).detach().unflatten(0, (model.cfg.n_heads, -1)).flatten(1)
            heads += [(index, head) for head, row in enumerate(rows) if not row[:32].any() and not row.any()]
        if _zero(mlp_writes(parts.mlp)):
            mlp.append(index)
    return Drop(tuple(attn), tuple(mlp), (), tuple(heads))


def _zero(parameters: Iterable[nn.Parameter]) -> bool:
    return not any(p.detach().flatten()[:32].any() or p.detach().any() for p in parameters)


def units(target: str, n_layers: int, n_heads: int = 0, n_kv_heads: int = 0) -> list[Unit]:
    """All droppable units of a target: attn, mlp, joint (both), block, head or group (a kv head and those that share it).

    Raises:
        ConfigError: the target is unknown.

    Example:
        >>> from attlas.interp.drop import units
        >>> units("attn", n_layers=3)
        [('attn', 0), ('attn', 1), ('attn', 2)]
        >>> len(units("head", n_layers=3, n_heads=6))
        18
    """
    if target not in TARGETS:
        raise ConfigError(f"target '{target}' is unknown; choose {', '.join(TARGETS)}")
    modules = ("attn", "mlp") if target == "joint" else (target,)
    a_layer = {"head": n_heads, "group": n_kv_heads}.get(target, 1)
    return [(module, i) for module in modules for i in range(n_layers * a_layer)]


def unit_name(unit: Unit, cfg: ModelConfig | int) -> str:
    """attn.3, mlp.3, block.3, head.3.5, group.3.1; of a model with this config, or this number of heads."""
    module, number = unit
    if module not in ("head", "group"):
        return f"{module}.{number}"
    heads = cfg if isinstance(cfg, int) else cfg.n_heads if module == "head" else cfg.n_kv_heads
    return f"{module}.{number // heads}.{number % heads}"


@contextlib.contextmanager
def masked(model: AnyModel, drop: Drop) -> Iterator[HookedModel]:
    """The model with parts silenced in memory: their outputs are zero, nothing is removed.

    Raises:
        LayerRangeError, ConfigError: see `Drop.check`.

    Example:
        >>> from attlas.interp.drop import Drop, masked
        >>> with masked(model, Drop.parse(("attn:1,2", "head:0.4"))) as smaller:
        ...     logits = smaller(text.tokens)
        >>> logits.shape  # [B, T, vocabulary]
        torch.Size([8, 24, 4096])
    """
    model = as_hooked(model)
    drop.check(model)
    heads: dict[int, list[int]] = {}
    for layer, head in drop.heads:
        heads.setdefault(layer, []).append(head)

    def silence(tensor: Tensor, _name: str) -> Tensor:
        return tensor.new_zeros(tensor.shape)

    def silence_heads(tensor: Tensor, name: str) -> Tensor:
        tensor = tensor.clone()
        tensor[:, :, heads[layer_index(name)]] = 0
        return tensor

    names = [f"blocks.{layer}.hook_attn_out" for layer in {*drop.attn, *drop.blocks}]
    names += [f"blocks.{layer}.hook_mlp_out" for layer in {*drop.mlp, *drop.blocks}]
    with model.hooks(
        {**dict.fromkeys(names, silence), **{f"blocks.{layer}.attn.hook_z": silence_heads for layer in heads}}
    ):
        yield model
