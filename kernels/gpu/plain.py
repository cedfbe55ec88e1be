"""The pieces of the step in torch, each as the Triton kernel of the same name computes it; outputs are written in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attlas.kernels.gpu.controls import AUX, CLIP, INV_SQRT_C2, L0, MSE, NESTED, OTHER, PENALTY, STEP, STEP_SIZE, TOTAL
from attlas.kernels.gpu.gradient import Gradient
from attlas.kernels.gpu.weights import Matrix, Vectors
from attlas.kernels.topk_torch import select_torch


def begin(x: Tensor, b_dec: Tensor, centred: Tensor, narrow: Tensor, controls: Tensor, values: Sequence[float]) -> None:
    """x − b_dec, also rounded where `narrow` is another tensor; and this step's controls."""
    torch.sub(x, b_dec, out=centred)
    if narrow is not centred:
        narrow.copy_(centred)
    controls.copy_(torch.tensor(values, dtype=controls.dtype))


def choose(narrow: Tensor, encoder: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations of each row as compared, ties to the lower feature; and int32 features, ascending."""
    if narrow.dtype == torch.bfloat16:
        pre = (narrow.float() @ encoder.t().float() + b_enc).to(torch.bfloat16).float()
        indices = pre.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
        return pre.gather(1, indices), indices.int()
    values, indices = select_torch(narrow, encoder.t(), b_enc, k)
    indices, order = indices.sort(dim=1)
    return values.gather(1, order), indices.int()


def evaluate(centred: Tensor, encoder: Tensor, b_enc: Tensor, index: Tensor) -> Tensor:
    """Pre-activations [N, K] of the features named."""
    at = index.long()
    rows = encoder[at.view(-1)].view(*at.shape, -1)
    return torch.einsum("nkd,nd->nk", rows, centred) + b_enc[at]


def group_of(features: Tensor, edges: Tensor | None) -> Tensor:
    """The group of each feature: how many edges are at or below it."""
    if edges is None:
        return torch.zeros_like(features)
    return torch.bucketize(features, edges.to(features.dtype), right=True)


def decode_dot(
    values: Tensor,
    index: Tensor,
    centred: Tensor,
    W_dec: Tensor,
    edges: Tensor | None,
    grads: Tensor,
    d_pre: Tensor,
    keys: Tensor,
    losses: Tensor,
    encoder: tuple[Tensor, Tensor] | None,
) -> None:
    """Reconstruction, residual gradient, loss and gradients of activations of each row, for L = mean over N·G of errors.

    Args:
        values: [N, K] pre-activations in, activations out; with `encoder` computed here.
        index: int32 [N, K].
        centred: [N, D]; W_dec: [F, D], rounded or not; edges: int32 [G] or None.
        grads: [N·G, D] out, entry n·G + g the sum over groups h ≥ g of dL/dx̂_h[n].
        d_pre: [N, K] out, 0 where a value is not above 0.
        keys: int32 [N, K] out, the feature, or F where its value is not above 0.
        losses: [G, N] out, squared errors.
        encoder: (rows [F, D], b_enc [F]), or None where values are there already.
    """
    (N, K), (F, D), G = values.shape, W_dec.shape, losses.shape[0]
    rows = index.long()
    if encoder is not None:
        values.copy_(evaluate(centred, *encoder, index))
    values.relu_()
    fires = ~(values <= 0)
    keys.copy_(torch.where(fires, index, F))
    W = W_dec[rows.view(-1)].view(N, K, D).to(values.dtype)
    groups = group_of(rows, edges)
    inside = (groups.unsqueeze(0) <= torch.arange(G, device=rows.device).view(G, 1, 1)).to(values.dtype)
    error = torch.einsum("gnk,nkd->gnd", inside * values, W) - centred
    losses.copy_(error.square().sum(-1))
    suffix = error.flip(0).cumsum(0).flip(0) * (2 / (N * G))  # [G, N, D]
    d_all = torch.einsum("gnd,nkd->gnk", suffix, W)
    d_pre.copy_(d_all.gather(0, groups.unsqueeze(0)).squeeze(0).masked_fill_(~fires, 0))
    grads.copy_(suffix.transpose(0, 1).reshape(N * G, D))


def segments(keys: Tensor, order: Tensor, d_pre: Tensor, offsets: Tensor, sums: Tensor, fired: Tensor) -> None:
    """Where each feature's pairs begin among sorted keys; the sums of their d_pre [F], and how many they are [F]."""
    F = fired.numel()
    offsets.copy_(torch.searchsorted(keys, torch.arange(F + 1, device=keys.device, dtype=keys.dtype)))
    sums.zero_().index_add_(0, keys[keys < F].long(), d_pre.reshape(-1)[order][keys < F])
    fired.copy_(offsets.diff())


def columns(grads: Tensor, d_pre: Tensor, encoder: Tensor, partial: Tensor) -> None:
    """Σ_n grads[n] − Σ_f d_pre[f]·encoder[f], the gradient of b_dec, in addends [S, D]; grads [N, D] of any row stride."""
    partial.zero_()
    partial[0] = grads.sum(0, dtype=partial.dtype) - d_pre @ encoder


def _whole(matrix: Matrix, gradient: Gradient, unit_norm: bool) -> Tensor:
    """The gradient [F, D]."""
    master = matrix.master
    g = torch.zeros_like(master)
    if gradient.pairs is not None:
        p = gradient.pairs
        F, pairs = master.shape[0], p.order[: int(p.offsets[-1])]
        features = torch.repeat_interleave(torch.arange(F, device=g.device), p.offsets.diff().long())
        G = p.edges.numel() if p.edges is not None else 1
        rows = pairs // p.slots * G + group_of(features, p.edges)
        g.index_add_(0, features, p.weights.reshape(-1)[pairs].unsqueeze(1) * p.source[rows].to(g.dtype))
    if gradient.dense is not None:
        g += gradient.dense
    if gradient.extra is not None:
        slot, rows = gradient.extra
        g += torch.where((slot >= 0).unsqueeze(1), rows[slot.clamp(min=0).long()], 0)
    if gradient.pull is not None:
        g += gradient.pull.unsqueeze(1) * master
    if unit_norm:
        g -= (g * master).sum(1, keepdim=True) * master
    return g


def update(
    matrix: Matrix,
    gradient: Gradient,
    controls: Tensor,
    betas: tuple[float, float],
    eps: float,
    *,
    unit_norm: bool,
    clip: bool,
    norms: Tensor | None = None,
) -> None:
    """Adam, one program a feature: sum of its pairs, radial part out, moments, move, norm 1 again, rounded copy.

    `norms` [F] takes the norms of the rows afterwards.
    """
    g = _whole(matrix, gradient, unit_norm)
    if clip:
        g *= controls[CLIP]
    matrix.exp_avg.lerp_(g, 1 - betas[0])
    matrix.exp_avg_sq.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    denominator = matrix.exp_avg_sq.sqrt() * controls[INV_SQRT_C2] + eps
    matrix.master.sub_(controls[STEP_SIZE] * matrix.exp_avg / denominator)
    if unit_norm:
        tiny = torch.finfo(g.dtype).tiny
        matrix.master.div_(torch.linalg.vector_norm(matrix.master, dim=1, keepdim=True).clamp_(min=tiny))
    if norms is not None:
        norms.copy_(torch.linalg.vector_norm(matrix.master, dim=1))
    matrix.refresh()


def squares(matrix: Matrix, gradient: Gradient, out: Tensor, *, unit_norm: bool) -> None:
    """The squared norm of each row of the gradient, [F]."""
    out.copy_(_whole(matrix, gradient, unit_norm).square().sum(1))


def clip_factor(squared: Tensor, grad: Tensor, partial: Tensor, largest: float, controls: Tensor) -> None:
    """Write the factor that brings the norm of all gradients to `largest` at most, as torch.nn.utils.clip_grad_norm_."""
    width = partial.shape[1]
    total = squared.sum() + grad[:-width].square().sum() + partial.sum(0).square().sum()
    controls[CLIP] = torch.clamp(largest / (total.sqrt() + 1e-6), max=1.0)


def update_vectors(
    vectors: Vectors,
    partial: Tensor,
    controls: Tensor,
    betas: tuple[float, float],
    eps: float,
    *,
    clip: bool,
    second_rate: float,
    losses: Tensor,
    nested: bool,
    fired: Tensor,
    penalties: Tensor | None,
    aux: Tensor | None,
    report: Tensor,
    bad: Tensor,
) -> None:
    """Adam for all vectors, and the step's report.

    Args:
        partial: addends of the gradient of b_dec, [S, D]; the others' are in `vectors.grad`.
        second_rate: factor of the learning rate of the second vector, which stays at or above 0; 0 for none.
        losses: [G, N], squared errors; their sum over groups is the loss, or their mean where `nested`.
        fired: int64 [F]; penalties: [F] or None; aux: AuxK's loss, 0-dim, or None.
        report: see attlas.kernels.gpu.controls; bad: int32 [1], the first step whose loss was not finite, or 0.
    """
    g, F = vectors.grad, vectors.n_features
    vectors.of("b_dec", g).copy_(partial.sum(0))
    scaled = g * controls[CLIP] if clip else g
    vectors.exp_avg.lerp_(scaled, 1 - betas[0])
    vectors.exp_avg_sq.mul_(betas[1]).addcmul_(scaled, scaled, value=1 - betas[1])
    move = controls[STEP_SIZE] * vectors.exp_avg / (vectors.exp_avg_sq.sqrt() * controls[INV_SQRT_C2] + eps)
    if second_rate:
        move[F : 2 * F] *= second_rate
    vectors.flat -= move
    if second_rate:
        vectors.flat[F : 2 * F].clamp_(min=0)
    G, N = losses.shape
    whole = losses.sum() / (N * G if nested else N)
    other = report.new_zeros(()) if penalties is None else penalties.sum()
    if aux is not None:
        other = other + aux
    report[TOTAL], report[MSE], report[NESTED] = whole + other, losses[-1].sum() / N, losses.sum() / (N * G)
    report[OTHER], report[L0] = other, fired.sum() / N
    spoilt = ~torch.isfinite(report[TOTAL]) & (bad[0] == 0)
    bad.copy_(torch.where(spoilt, controls[STEP].to(bad.dtype), bad))


def residual(
    x_hat: Tensor,
    target: Tensor,
    target_scale: float,
    alpha: Tensor | None,
    grads: Tensor,
    losses: Tensor,
) -> None:
    """grads = 2·α/N·(x̂ − scale·target) and losses = α·‖x̂ − scale·target‖² by row; row r of x̂ [R, D] has target r % N.

    losses: [R / N, N]; alpha 0-dim, or None for 1; the loss of AuxK is divided by N already: see `aux`.
    """
    N = target.shape[0]
    goal = (target.to(losses.dtype) * target_scale).repeat(x_hat.shape[0] // N, 1)
    error = x_hat.to(losses.dtype) - goal
    weight = 1.0 if alpha is None else alpha
    losses.copy_((error.square().sum(1) * weight).view(losses.shape))
    grads.copy_(error * (2 / N) * weight)


def activate(kind: str, u: Tensor, vectors: Vectors, out: Tensor) -> None:
    """Activations [N, F] from products u = (x − b_dec)·W_enc; `gated` fills [2, N, F]: ReLU(π), then the features."""
    flat, F = vectors.flat, vectors.n_features
    pi = u.to(flat.dtype) + flat[:F]
    if kind == "standard":
        out.copy_(torch.relu(pi))
    elif kind == "jumprelu":
        out.copy_(torch.where((pi <= flat[F : 2 * F]) | (pi <= 0), 0, pi))
    else:
        magnitude = u.to(flat.dtype) * flat[F : 2 * F].exp() + flat[2 * F : 3 * F]
        out[0] = torch.relu(pi)
        out[1] = torch.where((pi <= 0) | (magnitude <= 0), 0, magnitude)


def dense_backward(
    kind: str,
    u: Tensor,
    d_f: Tensor,
    vectors: Vectors,
    controls: Tensor,
    bandwidth: float,
    norms: Tensor | None,
    pull: Tensor | None,
    centre: Tensor,
    fired: Tensor,
    penalties: Tensor,
    dead: Tensor | None,
    revival: float,
) -> None:
    """Gradients of u [N, F] from those of activations, in place of d_f; of vectors; and what to report.

    Args:
        d_f: [N, F], gradients of activations; `gated`: [2, N, F], those of ReLU(π) first; the second becomes that of u.
        norms: [F] of decoder rows (standard); pull: [F] out, the L1 penalty's gradient along a decoder row.
        centre: [F] out, Σ_n of the gradient of u.
        fired: int64 [F] out; penalties: [F] out, λ times each feature's share.
        dead: bool [F]: features with a loss of revival·AuxK's weight·mean ReLU(−π) more (gated), or None.
    """
    flat, grad, F, N = vectors.flat, vectors.grad, vectors.n_features, u.shape[0]
    u = u.to(flat.dtype)
    pi, lam = u + flat[:F], controls[PENALTY] / N
    open_ = ~(pi <= 0)
    if kind == "standard":
        assert norms is not None
        assert pull is not None
        d_u = torch.where(open_, d_f.to(flat.dtype) + lam * norms, 0)
        total = (pi * open_).sum(0)
        penalties.copy_(lam * total * norms)
        pull.copy_(torch.where(norms > 0, lam * total / norms, 0))
        on = open_
        d_f.copy_(d_u)
        grad[:F] = d_u.sum(0)
    elif kind == "jumprelu":
        theta, d = flat[F : 2 * F], d_f.to(flat.dtype)
        on = open_ & ~(pi <= theta)
        near = (pi - theta).abs() < bandwidth / 2
        grad[F : 2 * F] = -(near * (theta / bandwidth * d + lam / bandwidth)).sum(0)
        penalties.copy_(lam * on.sum(0))
        d_u = d * on
        d_f.copy_(d_u)
        grad[:F] = d_u.sum(0)
    else:
        scale = flat[F : 2 * F].exp()
        on = open_ & ~(u * scale + flat[2 * F : 3 * F] <= 0)
        d_m, d_pi = d_f[1].to(flat.dtype) * on, (d_f[0].to(flat.dtype) + lam) * open_
        penalties.copy_(lam * torch.relu(pi).sum(0))
        if dead is not None:
            weight = controls[AUX] * revival / N * dead
            d_pi = d_pi - weight * (pi < 0)
            penalties += weight * torch.relu(-pi).sum(0)
        grad[:F], grad[F : 2 * F], grad[2 * F : 3 * F] = d_pi.sum(0), (d_m * u).sum(0) * scale, d_m.sum(0)
        d_u = d_m * scale + d_pi
        d_f[1] = d_u
    centre.copy_(d_u.sum(0))
    fired.copy_(on.sum(0))


def keep_largest(pre: Tensor, bias: Tensor, n_valid: Tensor, k: int, out: Tensor) -> None:
    """ReLU of the k largest of each row of pre + bias [N, C] among its first n_valid columns, ties to the lower; else 0."""
    C = pre.shape[1]
    pi = (pre.to(bias.dtype) + bias).masked_fill_(torch.arange(C, device=pre.device) >= n_valid, -torch.inf)
    if k < C:
        top = pi.sort(dim=1, descending=True, stable=True).indices[:, :k]
        kept = torch.zeros_like(pi, dtype=torch.bool).scatter_(1, top, True)
        pi = torch.where(kept, pi, 0)
    out.copy_(torch.relu(pi))
