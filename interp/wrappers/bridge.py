"""TransformerLens's TransformerBridge as the Hugging Face module inside it.

A bridge puts its own modules in the place of the original's, each around the one it replaces, and its hooks on these.
Attlas's hooks need the original layout, so the tree is rebuilt without them; parameters and buffers are the same tensors.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from attlas.errors import UnsupportedModelError

_INNER = "_original_component"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TOLERANCE = 1e-3  # of the largest output; attention runs in another order there


def is_bridge(module: Any) -> bool:
    """Whether a module is a TransformerBridge (decided without importing transformer_lens)."""
    return isinstance(module, nn.Module) and hasattr(module, "original_model")


def unbridged(module: Any) -> Any:
    """The Hugging Face module of a bridge, with the same parameters; any other module as it is.

    Raises:
        UnsupportedModelError: the bridge computes something else than its original (weights folded or edited in it).
    """
    if not is_bridge(module):
        return module
    original = module.original_model
    plain = _plain(original, {})
    _use_own_config(plain)
    _drop_added(plain)
    probe = _probe(plain)
    with torch.no_grad():
        theirs, ours = (_output(model(**probe)) for model in (original, plain))
    if theirs.shape != ours.shape or float((theirs - ours).abs().max()) > _TOLERANCE * float(ours.abs().max()):
        raise UnsupportedModelError(
            f"this TransformerBridge of {type(plain).__name__} computes something else than the model in it (weights "
            "folded or edited); boot a new one, without enable_compatibility_mode"
        )
    return plain


def _plain(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """A module whose tree holds no bridge; the module itself stays as it is."""
    while _INNER in module._modules:
        module = module._modules[_INNER]  # type: ignore[assignment]
    if id(module) not in seen:
        twin = seen[id(module)] = copy.copy(module)
        for name in _HOOKS:
            twin.__dict__[name] = OrderedDict()
        for name in ("_parameters", "_buffers"):
            twin.__dict__[name] = dict(twin.__dict__[name])
        twin.__dict__["_modules"] = {
            name: None if child is None else _plain(child, seen) for name, child in module._modules.items()
        }
    return seen[id(module)]


def _use_own_config(plain: Any) -> None:
    """A copy of the configuration without what the bridge set in it: eager attention that returns its maps."""
    shared, own = plain.config, copy.deepcopy(plain.config)
    own.output_attentions = False
    own._attn_implementation = "sdpa"
    for module in plain.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


def _drop_added(plain: Any) -> None:
    """Take out parameters of zeros that the bridge added, such as a bias of the unembedding."""
    with torch.device("meta"):
        known = set(type(plain)(plain.config).state_dict())
    for name in set(plain.state_dict()) - known:
        place, _, leaf = name.rpartition(".")
        owner = plain.get_submodule(place)
        if not bool(owner._parameters[leaf].any()):
            owner._parameters[leaf] = None


def _probe(model: Any) -> dict[str, Tensor]:
    """A small input: four tokens, or one image of noise."""
    parameter = next(model.parameters())
    config = model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
        draw = torch.randn(1, config.num_channels, *size, generator=torch.Generator().manual_seed(0))
        return {"pixel_values": draw.to(parameter.device, parameter.dtype)}
    return {"input_ids": torch.arange(4, device=parameter.device)[None] % config.vocab_size}


def _output(found: Any) -> Tensor:
    logits = getattr(found, "logits", None)
    tensor: Tensor = found.last_hidden_state if logits is None else logits
    return tensor.float()
