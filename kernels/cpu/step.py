"""A training step on the CPU for the sparse architectures: forward, loss, AuxK, backward, clipping, Adam.

TopK (arXiv 2406.04093), BatchTopK (2412.06410), Matryoshka (2503.17547) and JumpReLU (2407.14435). All that a step needs
of the N×F pre-activations are the pairs (row, feature) that fire; for JumpReLU also those within half a bandwidth of the
threshold, whose straight-through gradient reaches it. Three passes, each shared among threads by tiles (see crew): choose
pairs by rows; errors and gradients of pairs by rows; sums of gradients and Adam by features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attlas.kernels.cpu.choose import SAMPLE_ROWS, Pairs, from_limit, top_of_batch, top_of_rows
from attlas.kernels.cpu.crew import lead, share
from attlas.kernels.cpu.gradients import DenseSums, FeatureSums, Residuals, all_sums, residuals
from attlas.kernels.dispatch import require, require_like
from attlas.kernels.row_adam import RowAdam, fused_adam, remove_radial_
from attlas.kernels.sparse_decode import GATHER_ELEMENTS, FeatureOrder
from attlas.kernels.step_options import StepOptions

NEXT_GUESS = 0.95
"""Where the next batch's search for its N·k largest begins, as a share of this batch's least."""


@dataclass(frozen=True)
class SparseStepResult:
    """What a step saw, before its update.

    Attributes:
        errors: [G], mean_n ‖x − x̂_g‖² of each prefix, the whole dictionary last; the loss is their mean.
        aux_loss: α·mean_n ‖e − ê‖², 0-dim.
        fired: int64 [F], rows in which each feature fired.
        least: the smallest value that fired, 0-dim; 0 where none did.
        pairs: all that were looked at; those that did not fire have the value 0.
    """

    errors: Tensor
    aux_loss: Tensor
    fired: Tensor
    least: Tensor
    pairs: Pairs


class SparseStep:
    """Weights, Adam state and the step; a subclass says which pairs fire.

    Args:
        W_enc: [D, F]; b_enc: [F]; W_dec: [F, D]; b_dec: [D]; copied, float32 (float64 for checks).
        options: see StepOptions; `k_aux` 0 for no AuxK.
        clip: largest norm of the gradient of all parameters together; None never clips.
    """

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        options: StepOptions,
        clip: float | None = None,
    ) -> None:
        require_like(W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec)
        self.options, self.clip, self.n_steps = options, clip, 0
        self.encoder = W_enc.detach().t().clone(memory_format=torch.contiguous_format)
        self.W_dec = W_dec.detach().clone(memory_format=torch.contiguous_format)
        self.vectors = {"b_enc": b_enc.detach().clone(), "b_dec": b_dec.detach().clone()}
        betas, eps, lazy = options.betas, options.eps, options.lazy
        self.adams = {
            "encoder": RowAdam(self.encoder, betas, eps, lazy=lazy),
            "W_dec": RowAdam(self.W_dec, betas, eps, lazy=lazy, unit_norm=options.unit_norm),
        }
        self._start_vectors()

    def _start_vectors(self) -> None:
        self.vector_avg = {name: torch.zeros_like(v) for name, v in self.vectors.items()}
        self.vector_avg_sq = {name: torch.zeros_like(v) for name, v in self.vectors.items()}

    @property
    def W_enc(self) -> Tensor:
        """[D, F], a view of the stored encoder."""
        return self.encoder.t()

    @property
    def b_enc(self) -> Tensor:
        return self.vectors["b_enc"]

    @property
    def b_dec(self) -> Tensor:
        return self.vectors["b_dec"]

    rates: ClassVar[dict[str, float]] = {}
    """Vectors that learn at another rate than the rest: name → factor."""

    # -- what an architecture says -----------------------------------------------------------------------------------

    def _widths(self) -> Sequence[int]:
        return (self.encoder.shape[0],)

    def _choose(self, centred: Tensor) -> Pairs:
        """The pairs to look at; those that do not fire have the value 0."""
        raise NotImplementedError

    def _backward(self, pairs: Pairs, found: Residuals) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the pairs' pre-activations [P], and of vectors of the architecture's own."""
        return found.d_values.masked_fill_(pairs.values <= 0, 0), {}

    # -- the step ----------------------------------------------------------------------------------------------------

    def step(
        self, x: Tensor, dead: Tensor | None = None, *, lr: float | None = None, aux_weight: float | None = None
    ) -> SparseStepResult:
        """Update on x [N, D], N ≥ 1; `dead` is a bool [F] of features for AuxK."""
        require(x.dim() == 2 and x.shape[1] == self.b_dec.shape[0] and len(x) > 0, f"x has shape {tuple(x.shape)}")
        require_like(self.encoder, x=x)
        lr = self.options.lr if lr is None else lr
        aux_weight = self.options.aux_weight if aux_weight is None else aux_weight
        with torch.no_grad():
            return lead(lambda: self._step(x, dead, lr, aux_weight), x.numel() * self.encoder.shape[0])

    def _step(self, x: Tensor, dead: Tensor | None, lr: float, aux_weight: float) -> SparseStepResult:
        centred, F = x - self.b_dec, self.encoder.shape[0]
        pairs = self._choose(centred)
        found = residuals(pairs, self.W_dec, centred, self._widths())
        d_pre, d_vectors = self._backward(pairs, found)
        bags, fires = found.bags, ~(pairs.values <= 0)
        looked_at = pairs
        if not bool(fires.all()):
            pairs, d_pre, bags = pairs.where(fires), d_pre[fires], bags[fires]
        order = FeatureOrder(pairs.features.unsqueeze(1), F)
        d_b_enc = order.sum(d_pre)
        aux_loss, more_encoder, more_W_dec = x.new_zeros(()), None, None
        if dead is not None and self.options.k_aux > 0 and bool(dead.any()):
            aux_loss, more_encoder, more_W_dec, (at, d_b_aux) = self._aux(centred, found.last, dead, aux_weight)
            d_b_enc.index_add_(0, at, d_b_aux)
        gradients = {
            "encoder": FeatureSums(order, centred, pairs.rows, d_pre, more_encoder),
            "W_dec": FeatureSums(order, found.grads, bags, pairs.values, more_W_dec),
        }
        d_b_dec = found.grads.view(len(x), -1, x.shape[1])[:, 0].sum(0) - d_b_enc @ self.encoder
        self._update(gradients, {"b_enc": d_b_enc, "b_dec": d_b_dec, **d_vectors}, lr)
        least = pairs.values.min() if pairs.values.numel() else x.new_zeros(())
        return SparseStepResult(found.errors, aux_loss, torch.bincount(pairs.features, minlength=F), least, looked_at)

    def _aux(
        self, centred: Tensor, error: Tensor, dead: Tensor, weight: float
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """AuxK (arXiv 2406.04093, §A.2): α·mean ‖e − ê‖², e = −error held constant, ê the decode of the k_aux largest dead
        features; and (features ascending, gradient there) of the encoder, W_dec and b_enc."""
        at = dead.nonzero().squeeze(1)
        encoder, W_dec = self.encoder[at], self.W_dec[at]
        pairs = top_of_rows(centred, encoder, self.b_enc[at], min(self.options.k_aux, at.numel()))
        found = residuals(pairs, W_dec, -error, (at.numel(),))
        fires = ~(pairs.values <= 0)
        pairs, d_pre = pairs.where(fires), found.d_values[fires]
        order = FeatureOrder(pairs.features.unsqueeze(1), at.numel())
        chosen = (order.counts > 0).nonzero().squeeze(1)
        tile = max(1, GATHER_ELEMENTS // encoder.shape[1])
        d_encoder = all_sums(FeatureSums(order, centred, pairs.rows, d_pre), at.numel(), tile)
        d_W_dec = all_sums(FeatureSums(order, found.grads, pairs.rows, pairs.values), at.numel(), tile)
        d_b_enc, here = order.sum(d_pre), at[chosen]
        grads = [(here, weight * gradient[chosen]) for gradient in (d_encoder, d_W_dec, d_b_enc)]
        return weight * found.errors[0], grads[0], grads[1], grads[2]

    def apply(self, d_W_enc: Tensor, d_W_dec: Tensor, d_vectors: dict[str, Tensor], lr: float) -> None:
        """Update by gradients from elsewhere: [D, F], [F, D], and of every vector."""
        gradients = {"encoder": DenseSums(d_W_enc.t()), "W_dec": DenseSums(d_W_dec)}
        with torch.no_grad():
            lead(lambda: self._update(gradients, d_vectors, lr), 64 * d_W_dec.numel())

    def _update(
        self, gradients: dict[str, FeatureSums] | dict[str, DenseSums], d_vectors: dict[str, Tensor], lr: float
    ) -> None:
        height = max(1, GATHER_ELEMENTS // self.W_dec.shape[1])
        due = {name: adam.due(gradients[name].active_F, self.n_steps) for name, adam in self.adams.items()}
        jobs = []
        for name, features in due.items():
            M = self.W_dec.shape[0] if features is None else features.numel()
            jobs += [(name, slice(start, min(M, start + height))) for start in range(0, M, height)]
        size = 64 * self.W_dec.numel()
        scale, kept = 1.0, {}
        if self.clip is not None:
            kept = self._whole(gradients, due, jobs, size)
            scale = self._clip_factor([norm for _, norm in kept.values()], d_vectors)

        def move(job: tuple[str, slice]) -> None:
            name, places = job
            grad = kept[name, places.start][0] if kept else gradients[name].at(places, due[name])
            self.adams[name].move(places, due[name], grad.mul_(scale) if scale != 1 else grad, self.n_steps, lr)

        share(jobs, move, size)
        for name, vector in self.vectors.items():
            state = ([vector], [d_vectors[name] * scale], [self.vector_avg[name]], [self.vector_avg_sq[name]])
            rate = lr * self.rates.get(name, 1.0)
            fused_adam(*state, self.n_steps, rate, self.options.betas, self.options.eps)
        self.n_steps += 1

    def _whole(
        self,
        gradients: dict[str, FeatureSums] | dict[str, DenseSums],
        due: dict[str, Tensor | None],
        jobs: list[tuple[str, slice]],
        size: float,
    ) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        """Every tile's gradient, and its squared norm: clipping needs the norm of all before any is used."""
        kept: dict[tuple[str, int], tuple[Tensor, Tensor]] = {(name, at.start): None for name, at in jobs}  # type: ignore[misc]

        def work(job: tuple[str, slice]) -> None:
            (name, places), features = job, due[job[0]]
            grad, adam = gradients[name].at(places, features), self.adams[name]
            if adam.unit_norm:
                remove_radial_(grad, adam.matrix[places] if features is None else adam.matrix[features[places]])
            kept[name, places.start] = grad, grad.square().sum()

        share(jobs, work, size)
        return kept

    def _clip_factor(self, squares: list[Tensor], d_vectors: dict[str, Tensor]) -> float:
        """As torch.nn.utils.clip_grad_norm_."""
        total = torch.stack([*squares, *(d.square().sum() for d in d_vectors.values())]).sum().sqrt()
        return float(torch.clamp((self.clip or 0.0) / (total + 1e-6), max=1.0))

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Moments of Adam by parameter, not copied, and `n_steps`."""
        for adam in self.adams.values():
            adam.settle(self.n_steps)
        found = {f"exp_avg/{name}": adam.exp_avg for name, adam in self.adams.items()}
        found |= {f"exp_avg_sq/{name}": adam.exp_avg_sq for name, adam in self.adams.items()}
        for name in self.vectors:
            found |= {f"exp_avg/{name}": self.vector_avg[name], f"exp_avg_sq/{name}": self.vector_avg_sq[name]}
        return found | {"n_steps": torch.tensor(self.n_steps)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        for name, tensor in self.state().items():
            if name != "n_steps":
                tensor.copy_(tensors[name])
        self.n_steps = int(tensors["n_steps"])
        for adam in self.adams.values():
            adam.resume(self.n_steps)


class TopKOnCPU(SparseStep):
    """The k largest of each row."""

    def _choose(self, centred: Tensor) -> Pairs:
        return top_of_rows(centred, self.encoder, self.b_enc, self.options.k)


class BatchTopKStep(SparseStep):
    """The N·k largest of the batch; with several `widths`, ascending to F, the prefixes of Matryoshka."""

    widths: tuple[int, ...] = ()
    _guess = 0.0

    def _widths(self) -> Sequence[int]:
        return self.widths or super()._widths()

    def _choose(self, centred: Tensor) -> Pairs:
        pairs = top_of_batch(centred, self.encoder, self.b_enc, self.options.k, self._guess)
        self._guess = NEXT_GUESS * float(pairs.values.min()) if pairs.values.numel() else 0.0
        return pairs


class JumpReLUStep(SparseStep):
    """All pre-activations π above a threshold θ a feature, L = mean ‖x − x̂‖² + λ·mean ‖f‖₀ (and AuxK, which θ has no part in).

    θ gets −Σ (θ/ε·∂L/∂f + λ/(N·ε)) over the pairs with |π − θ| < ε/2, firing or not. These and the firing ones are all
    pairs with π > θ − ε/2, so the step is sparse where few lie there, and says how many do (`density`).
    """

    rates: ClassVar[dict[str, float]] = {"threshold": 2.0}

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        options: StepOptions,
        clip: float | None = None,
        *,
        threshold: Tensor,
        bandwidth: float,
    ) -> None:
        super().__init__(W_enc, b_enc, W_dec, b_dec, options, clip)
        require_like(self.encoder, threshold=threshold)
        self.vectors["threshold"] = threshold.detach().clone()
        self.bandwidth, self.penalty = bandwidth, 0.0
        self._start_vectors()

    @property
    def threshold(self) -> Tensor:
        return self.vectors["threshold"]

    def _limit(self) -> Tensor:
        """Below it a pair does not matter; less a rounding error, since the window is decided by |π − θ|."""
        edge = self.threshold - self.bandwidth / 2
        return edge - 1e-5 * (edge.abs() + self.bandwidth)

    def density(self, x: Tensor) -> float:
        """Share of pairs that matter, from rows that lie evenly in x."""
        some = (x - self.b_dec)[:: max(1, len(x) // SAMPLE_ROWS)]
        with torch.no_grad():
            pre = torch.addmm(self.b_enc, some, self.encoder.t())
            return float((pre >= self._limit()).sum()) / pre.numel()

    def _choose(self, centred: Tensor) -> Pairs:
        pairs, _ = from_limit(centred, self.encoder, self.b_enc, self._limit())
        self._pre, theta = pairs.values, self.threshold[pairs.features]
        fires = ~(pairs.values <= theta) & ~(pairs.values <= 0)
        return replace(pairs, values=torch.where(fires, pairs.values, 0))

    def _backward(self, pairs: Pairs, found: Residuals) -> tuple[Tensor, dict[str, Tensor]]:
        theta, N = self.threshold[pairs.features], pairs.n_rows
        near = (self._pre - theta).abs() < self.bandwidth / 2
        each = theta[near] / self.bandwidth * found.d_values[near] + self.penalty / (N * self.bandwidth)
        d_threshold = torch.zeros_like(self.threshold).index_add_(0, pairs.features[near], -each)
        return found.d_values.masked_fill_(pairs.values <= 0, 0), {"threshold": d_threshold}

    def _update(
        self, gradients: dict[str, FeatureSums] | dict[str, DenseSums], d_vectors: dict[str, Tensor], lr: float
    ) -> None:
        super()._update(gradients, d_vectors, lr)
        self.threshold.clamp_(min=0)
