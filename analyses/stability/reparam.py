"""σReparam: Ŵ = (γ/σ(W))·W for the linear layers of a transformer (Zhai et al. 2023, arXiv 2303.06296, section 3.2).

σ(W) is the largest singular value, from one power-iteration step a training step; γ is learnt. Spectral norms then
move only as fast as γ does, which keeps attention logits, and so attention entropy, away from collapse.

    reparam = attlas.sigma_reparam(model)        # in place; then train as before
    reparam.merge()                              # plain layers again, equal outputs; save_pretrained as usual
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attlas.errors import ConfigError, UnsupportedModelError

Init = Literal["one", "preserve"]
_SIDE_BY_SIDE = ("query_key_value", "qkv_proj", "gate_up_proj")  # of GPT-NeoX and Phi-3
_SMALL = 512  # up to this side a whole SVD is quicker than Lanczos
_held = False


@contextlib.contextmanager
def hold_power_iteration() -> Iterator[None]:
    """Read weights without a power-iteration step, also in training mode (for instruments beside the training)."""
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before


def _recomputing() -> bool:
    """Inside a backward pass: gradient checkpointing runs a layer again and must find the σ of the first time."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class SigmaReparam(nn.Module):
    """The parametrization W → (γ/σ(W))·W, for `torch.nn.utils.parametrize`.

    A fused projection (GPT-2's c_attn, MultiheadAttention's in_proj) holds `n_blocks` matrices side by side along its
    output dimension; each has its own γ and σ.

    Args:
        weight: [out, in], or [in, out] with out_dim = 1.
        out_dim: where the outputs lie.
        n_blocks: matrices side by side.
        init: γ at start: "one", or "preserve" (γ = σ(W), so that Ŵ = W).

    Attributes:
        gamma: parameter [n_blocks].
        u, v: buffers [n_blocks, out / n_blocks], [n_blocks, in]: the iteration's singular vectors, float32.
    """

    gamma: nn.Parameter
    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, out_dim: int = 0, n_blocks: int = 1, init: Init = "one") -> None:
        super().__init__()
        self.out_dim, self.n_blocks = out_dim, n_blocks
        self.place = 0  # of the weight among its module's parameters
        with torch.no_grad():
            blocks = self._blocks(weight).float()
            if not bool(blocks.flatten(1).ne(0).any(1).all()):
                raise ConfigError("σReparam divides by σ(W), which is 0 for an all-zero weight; initialise it first")
            if not bool(blocks.isfinite().all()):
                raise ConfigError("σReparam needs finite weights, and these hold NaN or infinity")
            # From the singular vectors themselves the iteration stands at its fixed point: "preserve" would otherwise
            # drift in training forwards while they converge.
            u, v = (torch.stack(side) for side in zip(*map(top_singular_vectors, blocks), strict=True))
            self.register_buffer("u", u)
            self.register_buffer("v", v)
            sigma = _sigma(blocks, u, v)
            start = torch.ones_like(sigma) if init == "one" else sigma
        self.gamma = nn.Parameter(start)

    def _blocks(self, weight: Tensor) -> Tensor:
        """[n_blocks, out / n_blocks, in]"""
        w = weight if self.out_dim == 0 else weight.T
        return w.reshape(self.n_blocks, -1, w.shape[1])

    def sigma(self, weight: Tensor) -> Tensor:
        """σ of each block by the vectors at hand: uᵀ·W·v, [n_blocks] float32. Its gradient is u·vᵀ."""
        # Clones: a later step may change the buffers before this graph's backward pass.
        return _sigma(self._blocks(weight).float(), self.u.float().clone(), self.v.float().clone())

    def forward(self, weight: Tensor) -> Tensor:
        # Autocast would run the iteration in half precision.
        with torch.autocast(weight.device.type, enabled=False):
            if self.training and not _held and not _recomputing():
                with torch.no_grad():
                    u, v = _iterate(self._blocks(weight).float(), self.v.float())
                    self.u.copy_(u)
                    self.v.copy_(v)
            ratio = self.gamma.float() / self.sigma(weight)
            size = weight.shape[self.out_dim] // self.n_blocks
            per_output = ratio.repeat_interleave(size).to(weight.dtype)
            return weight * (per_output.unsqueeze(1) if self.out_dim == 0 else per_output)


def top_singular_vectors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right singular vectors of the largest singular value, found in float64.

    Args:
        weight: [out, in], finite and not all zero.

    Returns: u [out], v [in], in the weight's dtype and on its device; the same on every rank.
    """
    matrix = weight.detach().double().cpu()
    if min(matrix.shape) <= _SMALL:
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        u, v = left[:, 0], right[0]
    else:
        from scipy.sparse.linalg import svds

        start = torch.randn(min(matrix.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        left, _, right = svds(matrix.numpy(), k=1, v0=start.numpy())
        u, v = torch.from_numpy(left[:, 0].copy()), torch.from_numpy(right[0].copy())
    return u.to(weight), v.to(weight)


def _iterate(blocks: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One step: u ← W·v / ‖·‖, v ← Wᵀ·u / ‖·‖, for each block."""
    u = nn.functional.normalize((blocks @ v.unsqueeze(-1)).squeeze(-1), dim=-1, eps=1e-30)
    return u, nn.functional.normalize((blocks.mT @ u.unsqueeze(-1)).squeeze(-1), dim=-1, eps=1e-30)


def _sigma(blocks: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return (u * (blocks @ v.unsqueeze(-1)).squeeze(-1)).sum(-1)


@dataclass(frozen=True)
class Reparametrized:
    """A model whose linear layers carry σReparam.

    Attributes:
        model: the same module that was passed in.
        names: the layers, by module name.
    """

    model: nn.Module
    names: tuple[str, ...]

    def _parts(self) -> Iterator[tuple[str, nn.Module, str, SigmaReparam]]:
        for name in self.names:
            module = self.model.get_submodule(name)
            for attribute in parametrize_names(module):
                listed: Any = module.parametrizations
                yield name, module, attribute, listed[attribute][0]

    @torch.no_grad()
    def sigmas(self) -> dict[str, Tensor]:
        """σ(W) of each layer as the iteration has it, [n_blocks]."""
        found = {}
        for name, module, attribute, part in self._parts():
            listed: Any = module.parametrizations
            found[name] = part.sigma(listed[attribute].original)
        return found

    def gammas(self) -> dict[str, nn.Parameter]:
        """γ of each layer, [n_blocks]: for an optimizer group without weight decay."""
        return {name: part.gamma for name, _, _, part in self._parts()}

    def merge(self) -> nn.Module:
        """Fold γ/σ into the weights: plain layers, equal outputs, the stock state dict. Returns the model."""
        return merge_sigma(self.model)


def parametrize_names(module: nn.Module) -> list[str]:
    """Parameters of a module that carry σReparam."""
    if not parametrize.is_parametrized(module):
        return []
    listed: Any = module.parametrizations
    return [name for name, parts in listed.items() if isinstance(parts[0], SigmaReparam)]


def merge_sigma(model: nn.Module) -> nn.Module:
    """Fold σReparam into the weights wherever the model has it; see Reparametrized.merge.

    Example:
        >>> from attlas.analyses.stability import merge_sigma, sigma_reparam
        >>> layers = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> found = sigma_reparam(layers, init="preserve")
        >>> len(list(layers.parameters())), len(list(merge_sigma(layers).parameters()))  # γ beside weight and bias
        (3, 2)
    """
    with hold_power_iteration():
        for module in list(model.modules()):
            for name in parametrize_names(module):
                listed: Any = module.parametrizations
                place = listed[name][0].place
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                later = [key for key in list(module._parameters)[place:] if key != name]
                for key in later:  # the weight came back last; optimizers and state dicts go by order
                    module._parameters[key] = module._parameters.pop(key)
    return model


def sigma_reparam(
    model: nn.Module,
    include: str | Sequence[str] | Callable[[str, nn.Module], bool] | None = None,
    init: Init = "one",
) -> Reparametrized:
    """Put σReparam on a model's linear layers, in place, before the optimizer is made (γ are new parameters).

    Args:
        model: any module; nn.Linear, transformers' Conv1D and nn.MultiheadAttention are known.
        include: globs over module names, or (name, module) → bool. None: attention and MLP layers inside the blocks of
            supported families (docs/models.md); every linear layer of other modules.
        init: "one" to train from scratch (the paper's), "preserve" to wrap a trained model without changing it.

    Raises:
        ConfigError: nothing matches, a layer has it already, or a weight is tied to another module.
        UnsupportedModelError: the model is compiled or quantised, or wrapped in DistributedDataParallel, or a layer holds
            several matrices (GPT-NeoX, Phi-3), or there are experts (gpt-oss) and include is None.

    Example:
        >>> from attlas.analyses.stability import sigma_reparam
        >>> layers = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> sigma_reparam(layers, include="0").names
        ('0',)
    """
    if init not in ("one", "preserve"):
        raise ConfigError(f"init '{init}' is not one or preserve")
    if hasattr(model, "_orig_mod") or type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is wrapped already; call sigma_reparam before torch.compile and DistributedDataParallel"
        )
    targets = _targets(model, include)
    _refuse_tied(model, targets)
    for name, module in targets:
        for attribute, out_dim, n_blocks in _weights_of(name, module):
            weight = getattr(module, attribute)
            if not weight.is_floating_point():
                raise UnsupportedModelError(f"'{name}' has {weight.dtype} weights; σReparam needs floating point")
            part = SigmaReparam(weight.detach(), out_dim, n_blocks, init)
            part.train(module.training)
            part.place = list(module._parameters).index(attribute)
            # unsafe: torch's check would run the forward pass, and with it a power-iteration step.
            parametrize.register_parametrization(module, attribute, part, unsafe=True)
    return Reparametrized(model, tuple(name for name, _ in targets))


def is_conv1d(module: nn.Module) -> bool:
    """A GPT-2 Conv1D, parametrized or not."""
    return any(cls.__name__ == "Conv1D" for cls in type(module).__mro__)


def _weights_of(name: str, module: nn.Module) -> list[tuple[str, int, int]]:
    """(parameter, output dimension, matrices side by side) of a known layer."""
    if isinstance(module, nn.Linear):
        return [("weight", 0, 1)]
    if is_conv1d(module):
        n_in, n_out = module.weight.shape  # type: ignore[misc]
        return [("weight", 1, n_out // n_in if name.endswith("c_attn") else 1)]  # cross-attention's holds two
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            return [("in_proj_weight", 0, 3)]
        return [(f"{part}_proj_weight", 0, 1) for part in "qkv"]
    return []


def _targets(
    model: nn.Module, include: str | Sequence[str] | Callable[[str, nn.Module], bool] | None
) -> list[tuple[str, nn.Module]]:
    known = {name: module for name, module in model.named_modules() if _weights_of(name, module)}
    # MultiheadAttention's own out_proj is a Linear and is listed by itself.
    if include is None:
        if experts := [n for n, _ in model.named_modules() if n.endswith(".experts")]:
            raise UnsupportedModelError(
                f"'{experts[0]}' is a mixture of experts, no linear layer, and would stay without σReparam; give include="
            )
        blocks = _block_prefixes(model)
        chosen = [n for n in known if blocks is None or any(n.startswith(b) for b in blocks)]
    elif callable(include):
        chosen = [n for n, m in known.items() if include(n, m)]
    else:
        globs = [include] if isinstance(include, str) else list(include)
        chosen = [n for n in known if any(fnmatch.fnmatch(n, g) for g in globs)]
    if not chosen:
        raise ConfigError(
            f"include={include!r} matches no linear layer; there are {', '.join(list(known)[:4]) or 'none'} …"
        )
    for name in chosen:
        if name.endswith(_SIDE_BY_SIDE):
            raise UnsupportedModelError(
                f"'{name}' holds several matrices in one; σReparam would divide all by one σ: leave it out with include="
            )
        if parametrize_names(known[name]):
            raise ConfigError(f"'{name}' has σReparam already; merge() first")
    return [(n, known[n]) for n in chosen]


def _block_prefixes(model: nn.Module) -> list[str] | None:
    """Names of the transformer blocks of a known family, each with a dot at the end."""
    from attlas.interp.families import describe

    try:
        layers = describe(model).layers
    except UnsupportedModelError:
        return None
    blocks = {id(layer.block) for layer in layers}
    return [f"{name}." for name, module in model.named_modules() if id(module) in blocks]


def _refuse_tied(model: nn.Module, targets: list[tuple[str, nn.Module]]) -> None:
    """A weight two modules share would be divided by σ in one place and not in the other."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{attribute}")
    for name, module in targets:
        for attribute, _, _ in _weights_of(name, module):
            shared = [o for o in owners.get(id(getattr(module, attribute)), []) if o != f"{name}.{attribute}"]
            if shared:
                raise ConfigError(
                    f"'{name}.{attribute}' is tied to '{shared[0]}', which would keep the weight without γ/σ; "
                    "leave it out of include, or untie it"
                )
