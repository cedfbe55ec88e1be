"""The lower bound of attention entropy, Theorem 3.1 of Zhai et al. 2023 (arXiv 2303.06296), and the norms it needs.

If the logits u of a query over n keys satisfy ‖u − mean(u)‖ ≤ s (the paper takes the larger ‖u‖), then with
β = exp(−s·√(n/(n−1))):   Ent(softmax(u)) ≥ log(1 + (n−1)β) + s·√(n(n−1))·β / (1 + (n−1)β).
It is attained when one logit stands out from n − 1 equal ones. For large s it falls as s·exp(−s): entropy that is
bounded away from 0 needs logits, and so spectral norms, that stay small.
"""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_lower_bound(s: Tensor | float, n_keys: Tensor | int) -> Tensor:
    """Least entropy (nats) of a softmax over `n_keys` logits whose centred norm is at most `s`.

    Args:
        s: ≥ 0, any shape.
        n_keys: attendable positions, broadcastable to s; fewer than two give 0.

    Returns: float64, the broadcast shape.
    """
    s = torch.as_tensor(s, dtype=torch.float64)
    n_keys = torch.as_tensor(n_keys, dtype=torch.float64, device=s.device)
    n = n_keys.clamp(min=2)
    beta = torch.exp(-s * (n / (n - 1)).sqrt())
    rest = (n - 1) * beta
    # s·β is 0·∞ where s is infinite; the bound is 0 there.
    peak = torch.where(beta > 0, s * (n * (n - 1)).sqrt() * beta / (1 + rest), 0)
    return torch.where(n_keys > 1, torch.log1p(rest) + peak, 0)


def logit_bound(
    qk_norm: Tensor, inputs: Tensor, scale: float, real: Tensor | None = None, n_iterations: int = 8
) -> Tensor:
    """The paper's s = scale·‖W_K·W_Qᵀ‖₂·‖X·Xᵀ‖₂, per sequence and head.

    Args:
        qk_norm: [H], from `qk_norms`.
        inputs: X [B, T, d], what W_Q and W_K are applied to.
        scale: of the logits.
        real: bool [B, T], False for padding, which takes no part; None: all.

    Returns: float64 [B, H].
    """
    x = inputs.to(torch.float64)
    x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)  # the biases' column, see qk_norms
    if real is not None:
        x = torch.where(real.unsqueeze(-1), x, 0)
    v = x.sum(1)
    largest = x.new_zeros(x.shape[0])
    for _ in range(n_iterations):  # ‖X·Xᵀ‖₂ = σ(X)², by power iteration on XᵀX without forming it
        v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp(min=1e-30)
        v = (x.mT @ (x @ v.unsqueeze(-1))).squeeze(-1)
        largest = torch.linalg.vector_norm(v, dim=-1)
    return scale * largest[:, None] * qk_norm.to(largest)[None]


def qk_norms(w_q: Tensor, w_k: Tensor, b_q: Tensor | None, b_k: Tensor | None, rotary: bool) -> Tensor:
    """‖W_K·W_Qᵀ‖₂ of each head, biases taken in as one more input that is always 1 *(ours)*.

    With rotary embedding a rotation stands between the two; then the product ‖W_K‖₂·‖W_Q‖₂, which holds for any *(ours)*.

    Args:
        w_q: [H, d, e]; w_k: [K, d, e], K a divisor of H; b_q [H, e], b_k [K, e] or None.

    Returns: float64 [H]; NaN where a weight is not finite.
    """
    w_q, w_k = _with_bias(w_q, b_q), _with_bias(w_k, b_k)
    if not bool((torch.isfinite(w_q.sum()) & torch.isfinite(w_k.sum())).item()):
        return w_q.new_full((w_q.shape[0],), torch.nan)
    group = w_q.shape[0] // w_k.shape[0]
    gram_q = w_q.mT @ w_q  # [H, e, e]
    gram_k = (w_k.mT @ w_k).repeat_interleave(group, 0)
    if rotary:
        return (torch.linalg.eigvalsh(gram_q)[:, -1] * torch.linalg.eigvalsh(gram_k)[:, -1]).clamp(min=0).sqrt()
    # σ²(W_K·W_Qᵀ) are the eigenvalues of gram_q·gram_k, those of R·gram_k·Rᵀ with gram_q = RᵀR: symmetric, e × e.
    values, vectors = torch.linalg.eigh(gram_q)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(1)  # gram_q = root·rootᵀ
    return torch.linalg.eigvalsh(root.mT @ gram_k @ root)[:, -1].clamp(min=0).sqrt()


def _with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.detach().to(torch.float64)
    if bias is None:
        return weight
    return torch.cat([weight, bias.detach().to(torch.float64).unsqueeze(1)], dim=1)


def spectral_norm(weight: Tensor, start: Tensor | None = None, n_iterations: int = 20) -> tuple[Tensor, Tensor]:
    """σ(W) by power iteration on a subspace of 8 directions, in float32, and the subspace to go on from next time.

    One direction converges as (σ₂/σ₁)^2n, and the two are often close; eight converge as (σ₉/σ₁)^2n.

    Args:
        weight: [m, n], any layout.
        start: [n, 8 or fewer] from an earlier call (any device), or None for a fixed start.
    """
    w = weight.detach().float()
    if start is None:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(w.shape[1], min(8, *w.shape), generator=generator)
    v = torch.linalg.qr(start.to(w.device)).Q
    for _ in range(n_iterations):
        v = torch.linalg.qr(w.mT @ (w @ v)).Q
    return torch.linalg.matrix_norm(w @ v, 2), v
