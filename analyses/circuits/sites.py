"""Places in a forward pass that can be changed: a hook, and within it a position, a head, an SAE's feature or its error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.errors import ConfigError, HookNameError, LayerRangeError, nearest
from attlas.interp import HookedModel
from attlas.interp.names import layer_of
from attlas.saes.base import SAE
from attlas.saes.decompose import SAEs, check_feature, decompose

_WITH_HEADS = ("hook_z", "hook_result", "hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k")


@dataclass(frozen=True, eq=False)
class Site:
    """One place.

    Attributes:
        hook: hook name whose tensor is [B, T, …].
        position: token position, or one a prompt as int64 [B]; None is all.
        head: for hooks with a head axis; None is all.
        feature: of the SAE on this hook: its part of the activation, amount · W_dec[feature].
        error: the part of the activation that the SAE's features leave out.
    """

    hook: str
    position: int | Tensor | None = None
    head: int | None = None
    feature: int | None = None
    error: bool = False

    @property
    def layer(self) -> int:
        """Layer index; −1 for embeddings."""
        layer = layer_of(self.hook)
        return -1 if layer is None else layer

    @property
    def has_sae(self) -> bool:
        return self.feature is not None or self.error

    def label(self) -> str:
        """Short name, such as "blocks.3.attn.hook_z head 0 @37"."""
        parts = [self.hook]
        if self.head is not None:
            parts.append(f"head {self.head}")
        if self.feature is not None:
            parts.append(f"feature {self.feature}")
        if self.error:
            parts.append("error")
        if isinstance(self.position, int):
            parts.append(f"@{self.position}")
        elif self.position is not None:
            parts.append("@role")
        return " ".join(parts)


@dataclass(frozen=True, eq=False)
class Edit:
    """A site and what to put there: `value` is what `quantity` would read there."""

    site: Site
    value: Tensor


def check_site(model: HookedModel, site: Site, saes: SAEs, n_positions: int) -> None:
    """Raise on a place that is not there.

    Raises:
        HookNameError, LayerRangeError, ConfigError: says what and the range.
    """
    if site.hook not in model.hook_names() or site.hook.endswith(("hook_pattern", "hook_attn_scores", "hook_scale")):
        raise HookNameError(f"'{site.hook}' cannot be patched{nearest(site.hook, model.hook_names())}")
    if site.head is not None:
        if not site.hook.endswith(_WITH_HEADS):
            raise ConfigError(
                f"'{site.hook}' has no heads; patch a head at attn.hook_z, hook_result, hook_q, hook_k or hook_v"
            )
        kv = site.hook.endswith(("hook_k", "hook_v"))
        n = model.cfg.n_kv_heads if kv else model.cfg.n_heads
        if not 0 <= site.head < n:
            raise LayerRangeError(f"head {site.head} is out of range; '{site.hook}' has heads 0–{n - 1}")
    if site.has_sae:
        if site.hook not in saes:
            raise ConfigError(f"there is no SAE on '{site.hook}'; give one, or patch the hook itself")
        if site.feature is not None:
            check_feature(saes[site.hook], site.feature)
    if isinstance(site.position, int) and not -n_positions <= site.position < n_positions:
        raise ConfigError(f"position {site.position} is out of range; the prompts have {n_positions} tokens")


def _rows(x: Tensor, site: Site) -> tuple[Tensor | slice, Tensor | slice | int]:
    """Index of the site's batch rows and positions."""
    if isinstance(site.position, Tensor):
        return torch.arange(x.shape[0], device=x.device), site.position.to(x.device)
    return slice(None), slice(None) if site.position is None else site.position


def quantity(x: Tensor, site: Site, sae: SAE | None) -> Tensor:
    """What stands at a site, of an activation [B, T, …]: the activation there, a feature's amount, or the error."""
    at = _rows(x, site)
    if not site.has_sae:
        return x[at] if site.head is None else x[at][..., site.head, :]
    assert sae is not None
    parts = decompose(sae, x)
    return parts.error[at] if site.error else parts.coefficients[at][..., site.feature]


def insert(x: Tensor, site: Site, sae: SAE | None, value: Tensor) -> Tensor:
    """A copy of the activation with `value` at the site; all else, the SAE's error included, stays."""
    at = _rows(x, site)
    new = x.clone()
    value = value.to(x.dtype)
    if not site.has_sae:
        if site.head is None:
            new[at] = value
        else:
            rows = new[at].clone()
            rows[..., site.head, :] = value
            new[at] = rows
        return new
    assert sae is not None
    change = value - quantity(x, site, sae)
    if site.feature is not None:
        change = change[..., None] * sae.W_dec[site.feature].to(x.dtype)
    new[at] = new[at] + change.reshape(new[at].shape)
    return new


def replacement(reference: Tensor, site: Site, sae: SAE | None, mode: str, order: Tensor | None = None) -> Tensor:
    """What to put at a site.

    Args:
        reference: activations of the reference prompts [B, T, …] at the hook.
        mode: "patch" (the reference's own value, prompt by prompt), "zero", "mean" (over reference prompts, at each
            position), "resample" (another prompt's value: row order[b] for prompt b).
        order: int64 [B], a permutation, for "resample".
    """
    value = quantity(reference, site, sae)
    if mode == "zero":
        return torch.zeros_like(value)
    if mode == "mean":
        return value.mean(0, keepdim=True).expand_as(value)
    if mode == "resample":
        assert order is not None
        return value[order.to(value.device)]
    return value


@contextlib.contextmanager
def edited(model: HookedModel, edits: Sequence[Edit], saes: SAEs) -> Iterator[HookedModel]:
    """Run the model with all edits in place, those of one hook in the order given."""
    by_hook: dict[str, list[Edit]] = {}
    for edit in edits:
        by_hook.setdefault(edit.site.hook, []).append(edit)

    def fn(tensor: Tensor, name: str) -> Tensor:
        for edit in by_hook[name]:
            tensor = insert(tensor, edit.site, saes.get(name), edit.value)
        return tensor

    with model.hooks(dict.fromkeys(by_hook, fn)):
        yield model


def grid(
    model: HookedModel, part: str, by: str, n_positions: int, features: Mapping[str, Sequence[int]] | None = None
) -> list[Site]:
    """All sites of a sweep, layer by layer.

    Args:
        part: end of the hook name: "hook_resid_pre", "hook_attn_out", "hook_mlp_out", "attn.hook_z" …
        by: "layer", "position" (layer × position), "head" (layer × head, all positions) or "feature".
        features: hook → feature indices, for "feature"; the SAE's error is added to them.
    """
    if by == "feature":
        return [Site(hook, feature=f, error=f is None) for hook, fs in (features or {}).items() for f in (*fs, None)]
    hooks = [f"blocks.{layer}.{part}" for layer in range(model.cfg.n_layers)]
    if by == "layer":
        return [Site(hook) for hook in hooks]
    if by == "position":
        return [Site(hook, position=p) for hook in hooks for p in range(n_positions)]
    n_heads = model.cfg.n_kv_heads if part.endswith(("hook_k", "hook_v")) else model.cfg.n_heads
    return [Site(hook, head=h) for hook in hooks for h in range(n_heads)]
