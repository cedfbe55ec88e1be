"""Whether an SAE, a checkpoint or a store belongs to the model and data at hand: one check for all.

Going on with other weights or data is refused, since the result would be of neither; using an SAE elsewhere is
allowed (after pruning, say) with a warning in one line.
"""

from __future__ import annotations

import hashlib
import warnings
import zlib
from typing import TYPE_CHECKING

import torch

from attlas.errors import ConfigError
from attlas.saes.activations import vector_hooks

if TYPE_CHECKING:
    from attlas.data.workspace import Ref
    from attlas.interp import HookedModel
    from attlas.saes.base import SAE

_WIDE = ("hook_z", "hook_q", "hook_rot_q")
_NARROW = ("hook_k", "hook_v", "hook_rot_k")


def fingerprint(model: HookedModel) -> str:
    """16 hex digits of the weights as they are in memory now (a model's `weight_hash` is of what was loaded)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.hf.state_dict().items()):
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name} {zlib.crc32(memoryview(plain)):08x} ".encode())
    return digest.hexdigest()[:16]


def identity(model: HookedModel, data: Ref) -> dict[str, str]:
    """What a checkpoint must agree with to be gone on from, besides the configuration."""
    return {"model weights": fingerprint(model), "data": data.hash}


def hook_width(model: HookedModel, hook: str) -> int:
    """Numbers a token at a hook that an SAE may read, heads concatenated."""
    cfg = model.cfg
    if hook.endswith(_WIDE):
        return int(cfg.n_heads * cfg.d_head)
    if hook.endswith(_NARROW):
        return int(cfg.n_kv_heads * cfg.d_head)
    return int(cfg.d_mlp if hook.endswith("mlp.hook_post") else cfg.d_model)


def check_sae(sae: SAE, model: HookedModel, hook: str | None = None) -> str:
    """The hook to read, after comparing the SAE with the model.

    Args:
        sae: any.
        model: the model at hand.
        hook: where to read; None is the SAE's own.

    Raises:
        ConfigError: neither says a hook, or the hook is not d_in wide (an SAE of one head, say).
        HookNameError, LayerRangeError: the model has no such hook.

    Warns: the SAE was trained on another hook or other weights; hook, width, and both models are named.
    """
    cfg = sae.cfg
    name = hook or cfg.hook_name
    if not name:
        raise ConfigError("the SAE does not say which hook it belongs to; give hook='blocks.L.attn.hook_z'")
    (name,) = vector_hooks(model, [name])
    width = hook_width(model, name)
    if width != cfg.d_in:
        of_one = name.endswith((*_WIDE, *_NARROW)) and cfg.d_in == model.cfg.d_head
        raise ConfigError(
            f"the SAE has d_in={cfg.d_in} and the activations have {width} at '{name}' of {model.name}; it was trained on "
            f"'{cfg.hook_name or 'an unnamed hook'}' of '{cfg.model_name or 'an unnamed model'}'"
            + (": an SAE of one head, and Attlas reads SAEs of all heads, concatenated" if of_one else "")
        )
    if cfg.hook_name and cfg.hook_name != name:
        warnings.warn(f"the SAE was trained on '{cfg.hook_name}' and is used on '{name}'", stacklevel=3)
    if _differs(sae, model):
        theirs = f"{cfg.model_name or 'an unnamed model'} ({cfg.model_hash or 'weights unknown'})"
        warnings.warn(
            f"the SAE of '{name}' (d_in {cfg.d_in}) was trained on {theirs}, this is {model.name} ({model.weight_hash}): "
            "its features may mean nothing here",
            stacklevel=3,
        )
    return name


def _differs(sae: SAE, model: HookedModel) -> bool:
    """By the hash of the weights; by name where a foreign SAE records no hash."""
    if sae.cfg.model_hash:
        return sae.cfg.model_hash != model.weight_hash
    return bool(sae.cfg.model_name) and _plain(sae.cfg.model_name) != _plain(model.name)


def _plain(name: str) -> str:
    """A model's name without owner or folder; gpt2-small is TransformerLens's word for gpt2."""
    plain = name.rstrip("/").split("/")[-1].lower()
    return "gpt2" if plain == "gpt2-small" else plain
