"""Take heads out of an attention module: narrower projections where the layout allows, silence where it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attlas.interp.config import ModelConfig
from attlas.interp.structure import LayerModules, linear_weight


@dataclass(frozen=True)
class HeadPlan:
    """What becomes of one layer's heads.

    Attributes:
        keep: query heads whose weights stay.
        keep_kv: key/value heads whose weights stay.
        silent: heads of `keep` that were to go and could not: their output projection becomes zero.
    """

    keep: tuple[int, ...]
    keep_kv: tuple[int, ...]
    silent: tuple[int, ...]


def plan_heads(cfg: ModelConfig, dropped: Sequence[int]) -> HeadPlan:
    """Remove as many heads as can go while every kept kv head serves equally many query heads.

    Grouped-query attention shares a kv head among H/K query heads. A kv head goes when its whole group does; of the
    others, each group gives up as many heads as the least-dropped group does, and the rest are silenced. One head (one
    group) always stays.
    """
    size = cfg.n_heads // cfg.n_kv_heads
    gone = Counter(head // size for head in dropped)
    keep_kv = [kv for kv in range(cfg.n_kv_heads) if gone[kv] < size] or [0]
    quota = min(min(gone[kv] for kv in keep_kv), size - 1)
    keep: list[int] = []
    for kv in keep_kv:
        group = range(kv * size, (kv + 1) * size)
        removed = [head for head in group if head in dropped][:quota]
        keep += [head for head in group if head not in removed]
    return HeadPlan(tuple(keep), tuple(keep_kv), tuple(head for head in keep if head in dropped))


@torch.no_grad()
def silence_heads(parts: LayerModules, heads: Sequence[int], d_head: int) -> None:
    """Zero the rows of W_O that belong to these heads, in place."""
    for head in heads:
        linear_weight(parts.out_proj)[head * d_head : (head + 1) * d_head] = 0


@torch.no_grad()
def narrow(parts: LayerModules, plan: HeadPlan, d_head: int) -> None:
    """Cut the attention module's projections to the kept heads, in place."""
    from attlas.interp.pruned.modeling_attlas_pruned import shrink

    attn: Any = parts.attn
    old = {
        name: (m.weight, m.bias) for name, m in attn.named_children() if isinstance(getattr(m, "weight", None), Tensor)
    }
    shrink(attn, len(plan.keep), len(plan.keep_kv))
    q, kv = _columns(plan.keep, d_head), _columns(plan.keep_kv, d_head)
    if "c_attn" in old:
        width = old["c_attn"][0].shape[1] // 3
        fused = torch.cat([q, q + width, q + 2 * width])
        _set(attn.c_attn, old["c_attn"][0][:, fused], old["c_attn"][1][fused])
        _set(attn.c_proj, old["c_proj"][0][q], old["c_proj"][1])
        return
    for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        weight, bias = old[name]
        _set(getattr(attn, name), weight[rows], None if bias is None else bias[rows])
    _set(attn.o_proj, old["o_proj"][0][:, q], old["o_proj"][1])


def _columns(heads: Sequence[int], d_head: int) -> Tensor:
    return torch.tensor([head * d_head + i for head in heads for i in range(d_head)], dtype=torch.long)


def _set(module: Any, weight: Tensor, bias: Tensor | None) -> None:
    module.weight = nn.Parameter(weight.clone())
    if bias is not None:
        module.bias = nn.Parameter(bias.clone())
