"""What kernels return, on the torch and the Triton path alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attlas.errors import KernelError
from attlas.kernels.dispatch import require


@dataclass(frozen=True)
class AttentionStats:
    """Per query, [B, H, T] each, float32. Masses are sums of attention weights, within 0 … 1."""

    entropy: Tensor
    """−Σ a·log a, nats, over the keys and the learned sink, where the layer has one (`AttentionRule.sinks`)."""
    max_weight: Tensor
    """The largest weight on a key."""
    sink_mass: Tensor
    """On key 0."""
    diagonal: Tensor
    """On the query's own position."""
    previous_token: Tensor
    """On the position before."""
    mean_distance: Tensor
    """Σ a·|i − j|, positions."""
    n_keys: Tensor
    """How many keys the query may attend to, int64; a learned sink counts as one."""
    spread: Tensor
    """‖u − mean(u)‖ over the attendable logits u: the s of the entropy's lower bound."""
    log_z: Tensor
    """log Σ exp(logit)."""
    window_masses: dict[int, Tensor] = field(default_factory=dict)
    """w → mass on keys with |i − j| < w (causal: the last w positions, the query's own among them)."""
    top_k_masses: dict[int, Tensor] = field(default_factory=dict)
    """n → mass of the n largest weights."""
    induction: Tensor | None = None
    """Mass on positions j + 1 where token j is the query's token, j not the query; with `token_ids` alone."""
    duplicate: Tensor | None = None
    """Mass on other positions that hold the query's token; with `token_ids` alone."""
    learned_sink: Tensor | None = None
    """Mass on the layer's learned sink, which is on no key; None where there is none."""
    column_mass: Tensor | None = None
    """[B, H, S]: Σ over queries of the mass each key receives; with `column=True` alone."""

    @property
    def window_mass(self) -> Tensor:
        """Mass within the first window asked for."""
        return next(iter(self.window_masses.values()))

    @property
    def top_k_mass(self) -> Tensor | None:
        """Mass of the first top-k asked for, or None."""
        return next(iter(self.top_k_masses.values()), None)

    @property
    def normalized_entropy(self) -> Tensor:
        """entropy / log(n_keys); NaN for queries with fewer than two keys, which a mean should leave out."""
        return torch.where(self.n_keys > 1, self.entropy / self.n_keys.to(self.entropy.dtype).log(), math.nan)

    @property
    def lower_bound(self) -> Tensor:
        """Theorem 3.1 of the paper per query, with s = spread: nats, never above the entropy (but for rounding)."""
        n = self.n_keys.to(self.spread.dtype).clamp(min=2)
        beta = torch.exp(-self.spread * (n / (n - 1)).sqrt())
        rest = (n - 1) * beta
        bound = torch.log1p(rest) + self.spread * (n * (n - 1)).sqrt() * beta / (1 + rest)
        return torch.where(self.n_keys > 1, bound, 0)

    def beside(self, sinks: Tensor, share: Tensor, mean: Tensor) -> AttentionStats:
        """These statistics, of keys alone, when a learned sink stands beside them: exactly, from a few numbers a query.

        Args:
            sinks: [H] its logit.
            share: [B, H, T] of the mass that the keys keep, σ(log_z − sink).
            mean: [B, H, T] of the attendable logits.
        """
        n, logit = self.n_keys.to(mean.dtype), sinks.detach().to(mean)[:, None]
        some = self.n_keys > 0
        taken = torch.sigmoid(logit - self.log_z)  # 1 − share, without its loss of digits
        entropy = share * self.entropy + torch.special.entr(share) + torch.special.entr(taken)
        spread = (self.spread**2 + n / (n + 1) * (logit - mean) ** 2).sqrt()
        masses = {name: getattr(self, name) * share for name in _PLAIN[1:6]}
        masses |= {
            name: found * share for name in ("induction", "duplicate") if (found := getattr(self, name)) is not None
        }
        return replace(
            self,
            entropy=torch.where(some, entropy, 0),
            n_keys=torch.where(some, self.n_keys + 1, 0),
            spread=torch.where(some, spread, 0),
            log_z=torch.where(some, torch.logaddexp(self.log_z, logit), self.log_z),
            learned_sink=torch.where(some, taken, 0),
            window_masses={w: mass * share for w, mass in self.window_masses.items()},
            top_k_masses={k: mass * share for k, mass in self.top_k_masses.items()},
            **masses,
        )

    def per_query(self) -> dict[str, Tensor]:
        """Every per-query statistic by name, each [B, H, T]."""
        found = {name: getattr(self, name) for name in _PLAIN}
        found["normalized_entropy"], found["lower_bound"] = self.normalized_entropy, self.lower_bound
        found |= {f"window_mass_{w}": mass for w, mass in self.window_masses.items()}
        found |= {f"top_{n}_mass": mass for n, mass in self.top_k_masses.items()}
        optional = ("induction", "duplicate", "learned_sink")
        found |= {n: t for n in optional if (t := getattr(self, n)) is not None}
        return found

    def reduce(self, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Mean per head, [H], over batch and queries (bool [T] or [B, T] picks some). Queries with no key are left out,
        as are those with one from the normalised entropy; a head with nothing left has NaN."""
        valid = self.n_keys > 0
        if queries is not None:
            valid = valid & (queries[None, None] if queries.dim() == 1 else queries[:, None])
        return {
            name: torch.where(valid, value.to(self.entropy.dtype), math.nan).transpose(0, 1).flatten(1).nanmean(-1)
            for name, value in self.per_query().items()
        }


_PLAIN = (
    *("entropy", "max_weight", "sink_mass", "diagonal", "previous_token", "mean_distance"),
    *("n_keys", "spread", "log_z"),
)


@dataclass(frozen=True)
class SparseCodes:
    """Active features of N rows: row n owns entries offsets[n] … offsets[n + 1] − 1, in order of feature index."""

    values: Tensor
    """[nnz] activations."""
    indices: Tensor
    """[nnz] int64 features."""
    offsets: Tensor
    """[N + 1] int64."""
    n_features: int

    @property
    def counts(self) -> Tensor:
        """Active features a row (L0): [N]."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """The row of each entry: [nnz]."""
        return torch.repeat_interleave(torch.arange(len(self.counts), device=self.offsets.device), self.counts)

    def to_dense(self) -> Tensor:
        """[N, F]; for small N alone."""
        dense = self.values.new_zeros(len(self.counts), self.n_features)
        return dense.index_put_((self.rows, self.indices), self.values)

    def decode(self, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
        """Σ values·W_dec[indices] + b_dec: [N, D]."""
        require(
            W_dec.shape[0] == self.n_features, f"W_dec has {W_dec.shape[0]} rows, the codes {self.n_features} features"
        )
        dtype = W_dec.dtype if W_dec.dtype in (torch.float32, torch.float64) else torch.float32
        x_hat = torch.nn.functional.embedding_bag(
            self.indices,
            W_dec.contiguous().to(dtype),
            self.offsets,
            per_sample_weights=self.values.to(dtype),
            mode="sum",
            include_last_offset=True,
        ).to(W_dec.dtype)
        return x_hat if b_dec is None else x_hat + b_dec


def check_capacity(n: int, capacity: int | None, n_rows: int) -> None:
    """Raise when the active entries so far do not fit."""
    if capacity is not None and n > capacity:
        raise KernelError(
            f"{n} active entries within the first {n_rows} rows exceed the capacity of {capacity}; "
            "raise capacity or the threshold, or encode fewer rows"
        )
