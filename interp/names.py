"""The hook vocabulary: TransformerLens's names, for every family."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable

from attlas.errors import HookNameError, LayerRangeError, nearest
from attlas.interp.structure import ModelStructure

NameFilter = str | Iterable[str] | Callable[[str], bool] | None

_BLOCK = (
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)
# Left out of "everything": T × T or T × d_model a head, so they are computed only when asked by name.
ON_REQUEST = ("attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_result")
IN_FRONT = ("ln_pre.hook_scale", "ln_pre.hook_normalized")  # of a norm between embeddings and layers (CLIP)
POOL = "pool.hook_pattern"  # of an attention pooling head (SigLIP): [B, head, 1, T]
_LAYER = re.compile(r"^blocks\.(\d+)\.")


def hook_names(structure: ModelStructure) -> tuple[str, ...]:
    """Every hook of a model, in the order a forward pass reaches them."""
    names = ["hook_embed"]
    if structure.pos_embed is not None:
        names.append("hook_pos_embed")
    if structure.pre_norm is not None:
        names += IN_FRONT
    for layer in range(structure.cfg.n_layers):
        for part in _BLOCK:
            if _absent(part, structure, layer):
                continue
            names.append(f"blocks.{layer}.{part}")
    names += ["ln_final.hook_scale", "ln_final.hook_normalized"]
    return (*names, POOL) if structure.pool is not None else tuple(names)


def _absent(part: str, structure: ModelStructure, layer: int) -> bool:
    """Whether a layer of this family has no such place."""
    parts = structure.layers[layer]
    lacking = {
        "attn.hook_rot_": structure.rotary is None,
        "ln1.": parts.ln1 is None,
        "ln2.": parts.ln2 is None,
        "hook_resid_mid": parts.mid is None,
        "mlp.hook_post": parts.down_proj is None,
    }
    return any(part.startswith(name) for name, missing in lacking.items() if missing)


def layer_of(name: str) -> int | None:
    """Layer index in a hook name, or None for the embedding and the final norm."""
    found = _LAYER.match(name)
    return int(found.group(1)) if found else None


def layer_index(name: str) -> int:
    """`layer_of` a hook that lies in a layer.

    Raises:
        HookNameError: it lies in none (the embedding, the final norm).
    """
    layer = layer_of(name)
    if layer is None:
        raise HookNameError(f"hook '{name}' lies in no layer; give one of blocks.L")
    return layer


def match_hooks(names: NameFilter, known: tuple[str, ...]) -> tuple[str, ...]:
    """Hook names that names, globs or a predicate match, in forward order.

    None means every hook but those of `ON_REQUEST`.

    Raises:
        HookNameError: a name or glob matches nothing; says the nearest names.
        LayerRangeError: the name is right but the layer is not there.
    """
    if names is None:
        return tuple(n for n in known if not n.endswith(ON_REQUEST))
    if callable(names):
        return tuple(n for n in known if names(n))
    wanted: set[str] = set()
    for pattern in [names] if isinstance(names, str) else list(names):
        found = [n for n in known if n == pattern] or fnmatch.filter(known, pattern)
        if not found:
            raise _unknown(pattern, known)
        wanted.update(found)
    return tuple(n for n in known if n in wanted)


def _unknown(pattern: str, known: tuple[str, ...]) -> HookNameError | LayerRangeError:
    layer = layer_of(pattern)
    n_layers = 1 + max((layer_of(n) or 0 for n in known), default=0)
    if layer is not None and layer >= n_layers:
        return LayerRangeError(f"hook '{pattern}': layer {layer} is out of range 0–{n_layers - 1}")
    return HookNameError(f"no hook matches '{pattern}'{nearest(pattern, known)}")
