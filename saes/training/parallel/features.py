"""Features shared out: each process holds F/P rows of one autoencoder and their Adam state, and sees every row of the batch.

The processes exchange reconstructions (their sum) and candidates (the k largest a row), never weights or gradients of
weights. The step is that of one process, up to the order of sums. A reconstruction is Σ over processes of f·W_dec + b_dec/P;
its gradient is the same on all, so each has its own rows' gradients, and those of b_dec add up over processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attlas.data.processes.group import Group
from attlas.errors import ConfigError
from attlas.kernels import sparse_decode, topk_rows
from attlas.saes.architectures import create_sae
from attlas.saes.architectures.auxk import pre_activation_loss
from attlas.saes.architectures.batchtopk import BatchTopKSAE
from attlas.saes.architectures.jumprelu import active_step
from attlas.saes.base import SAE, LossTerms, squared_error
from attlas.saes.config import SAEConfig
from attlas.saes.training.parallel.choice import Peers, keep_of_rows
from attlas.saes.training.parallel.rows import update


class FeaturesStep:
    """The step of one process; takes the place of the fused one.

    Args:
        sae: this process's features, `whole.d_sae / group.size` of them.
        whole: of the autoencoder that all make together.
        optimizer: over the part's parameters.
        clip: largest norm of the whole gradient, or None.

    Raises:
        ConfigError: no sharing is known for the architecture.
    """

    def __init__(
        self, sae: SAE, whole: SAEConfig, optimizer: torch.optim.Adam, group: Group, clip: float | None
    ) -> None:
        if whole.arch not in _LOSSES:
            raise ConfigError(f"the features of '{whole.arch}' cannot be shared out; use --parallel data")
        self.sae, self.whole, self.optimizer, self.group, self.clip = sae, whole, optimizer, group, clip
        self.n, self.start = sae.cfg.d_sae, sae.cfg.d_sae * group.rank
        with torch.device("meta"):
            self.widths: tuple[int, ...] = getattr(create_sae(whole), "widths", ())

    def step(self, x_BD: Tensor, dead_F: Tensor, learning_rate: float, penalty_scale: float = 1.0) -> LossTerms:
        """Update on the batch; the terms, and what fired, are the whole autoencoder's."""
        sae, group = self.sae, self.group
        x = x_BD.to(sae.W_enc.dtype)
        if isinstance(sae, BatchTopKSAE):
            sae.peers = Peers(group, 0, self.start, len(x), self.whole.d_sae)
        terms = _LOSSES[self.whole.arch](self, x, dead_F, penalty_scale)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        for parameter in sae.parameters():
            parameter.grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        assert sae.b_dec.grad is not None
        group.sum(sae.b_dec.grad)
        sae.before_step()
        if self.clip is not None:
            self._clip(self.clip)
        update(self.optimizer, learning_rate)
        sae.after_step()
        terms.fired_F = torch.cat(group.all_tensors(terms.fired_F))
        return terms

    def _clip(self, most: float) -> None:
        """As torch.nn.utils.clip_grad_norm_, over all processes' gradients."""
        grads = [p.grad for p in self.sae.parameters() if p.grad is not None]
        shared = self.sae.b_dec.grad
        own = torch.stack([g.square().sum() for g in grads if g is not shared]).sum()
        norm = (self.group.sum(own) + (shared.square().sum() if shared is not None else 0.0)).sqrt()
        for grad in grads:
            grad.mul_((most / (norm + 1e-6)).clamp(max=1.0))

    # -- what losses are made of -----------------------------------------------------------------------------------

    def whole_of(self, part: Tensor) -> Tensor:
        """The sum over processes; its gradient goes to each part as it is."""
        return _Sum.apply(part, self.group)

    def own(self, of_all_F: Tensor) -> Tensor:
        """This process's features of [F]."""
        return of_all_F[self.start : self.start + self.n]

    def decode(self, f_BF: Tensor) -> Tensor:
        """The whole reconstruction of this process's activations and the others'."""
        return self.whole_of(f_BF @ self.sae.W_dec + self.sae.b_dec / self.group.size)

    def l0(self, active: Tensor) -> Tensor:
        """Active features a token, of all processes."""
        return self.group.sum(active.sum(-1).float().mean())

    def auxk(self, x_BD: Tensor, x_hat_BD: Tensor, dead_F: Tensor) -> Tensor:
        """attlas.saes.architectures.auxk with the dead features of all processes, bool [F]."""
        dead = self.own(dead_F).nonzero().squeeze(-1)
        n_dead = int(dead_F.sum())
        if n_dead == 0 or self.whole.aux_coefficient == 0:
            return x_BD.new_zeros(())
        sae, k_full = self.sae, self.whole.k_aux or max(1, self.whole.d_in // 2)
        k_aux = min(k_full, n_dead)
        centred = x_BD - sae.b_dec if self.whole.apply_b_dec_to_input else x_BD
        pre = centred @ sae.W_enc[:, dead] + sae.b_enc[dead]
        width = min(k_aux, self.n)  # candidates of each process, those without so many filled up
        values, picked = topk_rows(pre, min(width, len(dead))) if len(dead) else (pre, pre.long())
        filled = torch.cat([values, values.new_full((len(values), width - values.shape[1]), -torch.inf)], dim=1)
        keep = keep_of_rows(self.group, filled, k_aux)[:, : values.shape[1]]
        f = torch.zeros_like(pre).scatter(-1, picked, torch.relu(values) * keep)
        error = (x_BD - x_hat_BD).detach()
        raw = squared_error(error, self.whole_of(f @ sae.W_dec[dead]))
        return self.whole.aux_coefficient * min(1.0, n_dead / k_full) * raw

    def state(self) -> dict[str, Tensor]:
        """Nothing: the optimiser's state is the trainer's."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to take up."""


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        return group.sum(part.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _terms(total: Tensor, named: dict[str, Tensor], active: Tensor, l0: Tensor) -> LossTerms:
    return LossTerms(total, {name: part.detach() for name, part in named.items()}, (active > 0).sum(0), l0.detach())


def _topk(step: FeaturesStep, x: Tensor, dead_F: Tensor, penalty_scale: float) -> LossTerms:
    sae = step.sae
    values, indices = sae.encode_sparse(x)
    values = values * keep_of_rows(step.group, values, step.whole.k)
    x_hat = step.whole_of(sparse_decode(values, indices, sae.W_dec, sae.b_dec / step.group.size))
    mse, aux = squared_error(x, x_hat), step.auxk(x, x_hat, dead_F)
    active = values > 0
    terms = _terms(mse + aux, {"mse": mse, "auxk": aux}, active, step.l0(active))
    terms.fired_F = torch.bincount(indices[active], minlength=step.n)
    return terms


def _batchtopk(step: FeaturesStep, x: Tensor, dead_F: Tensor, penalty_scale: float) -> LossTerms:
    f = _chosen(step, x)
    x_hat = step.decode(f)
    mse, aux = squared_error(x, x_hat), step.auxk(x, x_hat, dead_F)
    return _terms(mse + aux, {"mse": mse, "auxk": aux}, f > 0, step.l0(f > 0))


def _matryoshka(step: FeaturesStep, x: Tensor, dead_F: Tensor, penalty_scale: float) -> LossTerms:
    f, sae, parts, begin = _chosen(step, x), step.sae, [], 0
    for width in step.widths:
        end = min(max(width - step.start, 0), step.n)
        parts.append(f[:, begin:end] @ sae.W_dec[begin:end])
        begin = end
    parts[0] = parts[0] + sae.b_dec / step.group.size
    prefixes = step.whole_of(torch.stack(parts)).cumsum(0)
    errors = torch.stack([squared_error(x, x_hat) for x_hat in prefixes])
    aux = step.auxk(x, prefixes[-1], dead_F)
    named = {"mse": errors[-1], "nested": errors.mean(), "auxk": aux}
    return _terms(errors.mean() + aux, named, f > 0, step.l0(f > 0))


def _chosen(step: FeaturesStep, x: Tensor) -> Tensor:
    sae = step.sae
    assert isinstance(sae, BatchTopKSAE)
    f = sae.activate_batch(sae.pre_activations(x))
    sae.update_threshold(f.detach())
    return f


def _standard(step: FeaturesStep, x: Tensor, dead_F: Tensor, penalty_scale: float) -> LossTerms:
    f = step.sae.encode(x)
    mse = squared_error(x, step.decode(f))
    of_norms = (f * step.sae.W_dec.norm(dim=-1)).sum(-1).mean()
    l1 = step.whole.sparsity * penalty_scale * step.whole_of(of_norms)
    return _terms(mse + l1, {"mse": mse, "l1": l1}, f > 0, step.l0(f > 0))


def _gated(step: FeaturesStep, x: Tensor, dead_F: Tensor, penalty_scale: float) -> LossTerms:
    sae = step.sae
    gate = sae.pre_activations(x)
    f, opened = sae.activate(gate), torch.relu(gate)
    mse = squared_error(x, step.decode(f))
    l1 = step.whole.sparsity * penalty_scale * step.whole_of(opened.sum(-1).mean())
    frozen = step.whole_of(opened @ sae.W_dec.detach() + sae.b_dec.detach() / step.group.size)
    aux = squared_error(x, frozen)
    revival = step.whole_of(pre_activation_loss(sae, gate, step.own(dead_F)))
    named = {"mse": mse, "l1": l1, "aux": aux, "revival": revival}
    return _terms(mse + l1 + aux + revival, named, f > 0, step.l0(f > 0))


def _jumprelu(step: FeaturesStep, x: Tensor, dead_F: Tensor, penalty_scale: float) -> LossTerms:
    sae = step.sae
    pre = sae.pre_activations(x)
    x_hat = step.decode(sae.activate(pre))
    mse, aux = squared_error(x, x_hat), step.auxk(x, x_hat, dead_F)
    active = active_step(pre, sae.get_parameter("threshold"), step.whole.bandwidth)
    l0 = step.whole_of(active.sum(-1).mean())
    penalty = step.whole.sparsity * penalty_scale * l0
    named = {"mse": mse, "l0_penalty": penalty, "auxk": aux}
    return _terms(mse + penalty + aux, named, active.detach() > 0, l0)


_LOSSES: dict[str, Callable[[FeaturesStep, Tensor, Tensor, float], LossTerms]] = {
    "topk": _topk,
    "batchtopk": _batchtopk,
    "matryoshka": _matryoshka,
    "standard": _standard,
    "gated": _gated,
    "jumprelu": _jumprelu,
}
