"""Rotary tables of a Lorsa, and what a model's own rotation is in its settings.

Coordinates i of a pair turn by position · θ^(−2i/dim) (Su et al. 2021, arXiv 2104.09864). Llama 3 divides slow frequencies by
`ntk_factor`: with wavelength w = 2π/frequency and c the old context length, those with w > c/low wholly, those with
w < c/high not at all, and those between in proportion to (c/w − low)/(high − low).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attlas.errors import UnsupportedModelError
from attlas.saes.lorsa.config import LorsaRotary

if TYPE_CHECKING:
    from attlas.interp import HookedModel


def frequencies(rotary: LorsaRotary) -> Tensor:
    """Radians a position, float64 [dim/2]."""
    inv = rotary.base ** (-torch.arange(0, rotary.dim, 2, dtype=torch.float64) / rotary.dim)
    if rotary.ntk_factor is None:
        return inv
    turns = rotary.old_context * inv / (2 * math.pi)  # of the old context, c/w
    share = ((turns - rotary.ntk_low) / (rotary.ntk_high - rotary.ntk_low)).clamp(0, 1)
    return inv * (share + (1 - share) / rotary.ntk_factor)


def tables(rotary: LorsaRotary, n_positions: int) -> tuple[Tensor, Tensor]:
    """(cos, sin) of every coordinate that turns, float64 [n_positions, dim]."""
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies(rotary)
    whole = angles.repeat_interleave(2, -1) if rotary.adjacent_pairs else torch.cat((angles, angles), -1)
    return whole.cos(), whole.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor, adjacent_pairs: bool) -> Tensor:
    """x [..., T, width] with its leading coordinates turned; cos and sin [T, dim]."""
    dim = cos.shape[-1]
    moving, still = x[..., :dim], x[..., dim:]
    if adjacent_pairs:
        other = torch.stack((-moving[..., 1::2], moving[..., ::2]), -1).flatten(-2)
    else:
        other = torch.cat((-moving[..., dim // 2 :], moving[..., : dim // 2]), -1)
    return torch.cat((moving * cos + other * sin, still), -1)


def of_model(model: HookedModel) -> LorsaRotary | None:
    """A model's rotation; None with learned positions.

    Raises:
        UnsupportedModelError: its frequencies are scaled in a way that Lorsa's settings cannot express.
    """
    cfg = model.cfg
    if cfg.positional != "rotary":
        return None
    config: Any = model.hf.config
    said: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    kind = said.get("rope_type", said.get("type", "default"))
    base = said.get("rope_theta", getattr(config, "rope_theta", None) or 10_000.0)
    if kind not in ("default", "llama3") or not isinstance(base, int | float):
        raise UnsupportedModelError(
            f"{model.name} scales its rotary positions as '{kind}', by layer or by length; a Lorsa knows plain ones and llama3"
        )
    scaled = {}
    if kind == "llama3":
        scaled = {
            "ntk_factor": float(said["factor"]),
            "ntk_low": float(said["low_freq_factor"]),
            "ntk_high": float(said["high_freq_factor"]),
            "old_context": int(said["original_max_position_embeddings"]),
        }
    return LorsaRotary(cfg.n_rotating, float(base), cfg.rotary_pairs == "next", **scaled)  # type: ignore[arg-type]
