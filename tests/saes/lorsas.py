"""Small Lorsas of every shape, and what they compute by loops over the formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attlas.saes.lorsa.config import LorsaConfig, LorsaRotary
from attlas.saes.lorsa.model import Lorsa

SHAPES = {
    "learned positions": {},
    "halves": {"rotary": LorsaRotary(4, 100.0)},
    "adjacent pairs, part of a head": {"rotary": LorsaRotary(2, 50.0, adjacent_pairs=True)},
    "llama3": {"rotary": LorsaRotary(4, 500.0, ntk_factor=8.0, ntk_low=1.0, ntk_high=4.0, old_context=16)},
    "norms of queries and keys": {"qk_norm": True, "qk_norm_eps": 1e-3, "rotary": LorsaRotary(4)},
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu"},
}
TINY = {"d_model": 6, "d_sae": 8, "n_qk_heads": 2, "d_qk_head": 4, "n_ctx": 7, "k": 3}


def drawn(seed: int = 0, **more: Any) -> Lorsa:
    lorsa = Lorsa(LorsaConfig(**{**TINY, **more}), torch.float64)
    draw = torch.Generator().manual_seed(seed)
    for parameter in lorsa.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    if lorsa.cfg.activation == "jumprelu":
        lorsa.threshold.data.abs_()
    return lorsa


def angle(rotary: LorsaRotary, position: int, pair: int) -> float:
    f = rotary.base ** (-2 * pair / rotary.dim)
    if rotary.ntk_factor is not None:
        wavelength = 2 * math.pi / f
        low, high = rotary.old_context / rotary.ntk_low, rotary.old_context / rotary.ntk_high
        if wavelength > low:
            f /= rotary.ntk_factor
        elif wavelength >= high:
            s = (rotary.old_context / wavelength - rotary.ntk_low) / (rotary.ntk_high - rotary.ntk_low)
            f = (1 - s) * f / rotary.ntk_factor + s * f
    return position * f


def turned(vector: list[float], rotary: LorsaRotary | None, position: int) -> list[float]:
    if rotary is None:
        return vector
    out = list(vector)
    for i in range(rotary.dim // 2):
        a, b = (2 * i, 2 * i + 1) if rotary.adjacent_pairs else (i, i + rotary.dim // 2)
        c, s = math.cos(angle(rotary, position, i)), math.sin(angle(rotary, position, i))
        out[a], out[b] = vector[a] * c - vector[b] * s, vector[b] * c + vector[a] * s
    return out


def by_loops(lorsa: Lorsa, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(A[head, query, key] · value of every feature [T, F, T], z [T, F], ŷ [T, D]) of one sequence, from the formulas."""
    c, w = lorsa.cfg, {name: p.detach() for name, p in lorsa.named_parameters()}
    T = len(x)

    def vectors(kind: str, g: int) -> list[list[float]]:
        rows = []
        for t in range(T):
            row = [float(x[t] @ w[f"W_{kind}"][g, :, j] + w[f"b_{kind}"][g, j]) for j in range(c.d_qk_head)]
            if c.qk_norm:
                size = math.sqrt(sum(v * v for v in row) / len(row) + c.qk_norm_eps)
                row = [v / size * float(w[f"w_norm_{kind}"][g, j]) for j, v in enumerate(row)]
            rows.append(turned(row, c.rotary, t))
        return rows

    parts = torch.zeros(T, c.d_sae, T, dtype=torch.float64)
    for i in range(c.d_sae):
        g = i // (c.d_sae // c.n_qk_heads)
        q, k = vectors("Q", g), vectors("K", g)
        for t in range(T):
            e = [
                math.exp(sum(a * b for a, b in zip(q[t], k[s], strict=True)) / math.sqrt(c.d_qk_head))
                for s in range(t + 1)
            ]
            for s in range(t + 1):
                parts[t, i, s] = e[s] / sum(e) * float(x[s] @ w["W_V"][i] + w["b_V"][i])
    pre, z = parts.sum(-1), torch.zeros(T, c.d_sae, dtype=torch.float64)
    size = [float(w["W_O"][i].norm()) for i in range(c.d_sae)]
    for t in range(T):
        order = sorted(range(c.d_sae), key=lambda i: (-float(pre[t, i]) * size[i], i))
        for place, i in enumerate(order):
            strength = float(pre[t, i]) * size[i]
            enough = place < c.k if c.activation == "topk" else True
            if c.activation == "jumprelu":
                enough = strength > float(w["threshold"][i])
            if strength > 0 and enough:
                z[t, i] = pre[t, i]
    y = torch.stack([sum((z[t, i] * w["W_O"][i] for i in range(c.d_sae)), w["b_D"].clone()) for t in range(T)])
    return parts, z, y
