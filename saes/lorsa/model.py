"""Low-rank sparse attention (Lorsa): an attention layer made of many heads with one-dimensional values, few active a token.

He et al. 2025 (arXiv 2504.20938; formulas as the authors' library documents them, openmoss.github.io/Language-Model-SAEs):
with x the layer's normalised input and features i = 0 … F − 1, of which F/G consecutive ones share query–key head h(i),

    A^h = softmax((x·W_Q^h + b_Q^h)(x·W_K^h + b_K^h)ᵀ / √d_qk + causal mask)        [T, T]
    z̃^i = A^{h(i)} (x·w_V^i + b_V^i)                                                 [T]
    z   = the k largest ReLU(z̃^i)·‖w_O^i‖ of each token, at their value z̃^i; the others are 0
    ŷ   = Σ_i z^i w_O^i + b_D                                                         [T, D]

Queries and keys turn with their position where the model's do; with learned positions, which stand in the residual stream, they
do not. Of the authors' code are the ReLU and the factor ‖w_O‖ in the choice, and the normalised squared error. *Ours*: rows of
W_O are brought to norm 1 after training, so that z is in units of the layer's output; ties go to the lower index.

Shapes in names: B sequences, T positions, D = d_model, F = d_sae, G = n_qk_heads, Q = d_qk_head.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from attlas.errors import ConfigError, ContextLengthError
from attlas.kernels import sparse_decode, topk_rows
from attlas.saes.base import LossTerms
from attlas.saes.lorsa.config import LorsaConfig
from attlas.saes.lorsa.rotary import tables, turn


class Lorsa(nn.Module):
    """A Lorsa with the weights W_Q, W_K [G,D,Q], W_V, W_O [F,D] and their biases b_Q, b_K [G,Q], b_V [F], b_D [D].

    Train one with `train_lorsa`, open one with `load_lorsa`. Inputs are whole sequences [B, T, D] from the first position on,
    since a feature looks at earlier tokens; padding may follow the text.

    Example:
        >>> from attlas.saes import Lorsa, LorsaConfig
        >>> lorsa = Lorsa(LorsaConfig(d_model=192, d_sae=48, n_qk_heads=6, d_qk_head=32, n_ctx=24, k=4))
        >>> x = model.capture(text.tokens, "blocks.3.ln1.hook_normalized")["blocks.3.ln1.hook_normalized"]
        >>> lorsa(x).shape, lorsa.encode(x).shape  # [B, T, d_model], [B, T, features]
        (torch.Size([8, 24, 192]), torch.Size([8, 24, 48]))
    """

    def __init__(self, cfg: LorsaConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.cfg = cfg

        def weights(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=dtype))

        heads = (cfg.n_qk_heads, cfg.d_qk_head)
        self.W_Q, self.b_Q = weights(cfg.n_qk_heads, cfg.d_model, cfg.d_qk_head), weights(*heads)
        self.W_K, self.b_K = weights(cfg.n_qk_heads, cfg.d_model, cfg.d_qk_head), weights(*heads)
        self.W_V, self.b_V = weights(cfg.d_sae, cfg.d_model), weights(cfg.d_sae)
        self.W_O, self.b_D = weights(cfg.d_sae, cfg.d_model), weights(cfg.d_model)
        if cfg.qk_norm:
            self.w_norm_Q, self.w_norm_K = (nn.Parameter(torch.ones(*heads, dtype=dtype)) for _ in "QK")
        if cfg.activation == "jumprelu":
            self.threshold = weights(cfg.d_sae)
        self._tables: tuple[Tensor, Tensor] | None = None

    # -- attention -------------------------------------------------------------------------------------------------

    def queries_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, normed and turned, [B, T, D] → twice [B, G, T, Q].

        Raises:
            ContextLengthError: the sequence is longer than n_ctx.
        """
        self._check(x)
        x = x.to(self.W_Q.dtype)
        q, k = (self._project(x, W, b) for W, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K)))
        if self.cfg.qk_norm:
            q, k = self._norm(q, self.w_norm_Q), self._norm(k, self.w_norm_K)
        if self.cfg.rotary is not None:
            cos, sin = (t[: x.shape[1]].to(q) for t in self._rotation())
            q, k = (turn(t, cos, sin, self.cfg.rotary.adjacent_pairs) for t in (q, k))
        return q, k

    def _project(self, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        """x·W + b, [B, T, D] → [B, G, T, Q], as one product of matrices."""
        return (x @ W.transpose(0, 1).flatten(1) + b.flatten()).unflatten(-1, b.shape).transpose(1, 2)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.cfg.qk_norm_eps).sqrt() * weight[:, None]

    def _rotation(self) -> tuple[Tensor, Tensor]:
        if self._tables is None:
            assert self.cfg.rotary is not None
            self._tables = tables(self.cfg.rotary, self.cfg.n_ctx)
        return self._tables

    def _check(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[-1] != self.cfg.d_model:
            raise ConfigError(
                f"a Lorsa of d_model={self.cfg.d_model} reads whole sequences [B, T, {self.cfg.d_model}], not {list(x.shape)}"
            )
        if x.shape[1] > self.cfg.n_ctx:
            raise ContextLengthError(
                f"a sequence of {x.shape[1]} is longer than the Lorsa's n_ctx={self.cfg.n_ctx}; use seq_len ≤ {self.cfg.n_ctx}"
            )

    def pattern(self, x: Tensor) -> Tensor:
        """Attention of the query–key heads, [B, T, D] → [B, G, query, key]; rows sum to 1."""
        q, k = self.queries_keys(x)
        scores = q @ k.transpose(-1, -2) / self.cfg.divisor
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1)

    def values(self, x: Tensor) -> Tensor:
        """What each feature reads of each token, x·w_V + b_V: [B, T, D] → [B, T, F]."""
        return x.to(self.W_V.dtype) @ self.W_V.T + self.b_V

    def pre_activations(self, x: Tensor) -> Tensor:
        """z̃, [B, T, D] → [B, T, F]."""
        v = self.values(x).unflatten(-1, (self.cfg.n_qk_heads, -1)).transpose(1, 2)  # [B, G, T, F/G]
        return (self.pattern(x) @ v).transpose(1, 2).flatten(2)

    # -- features --------------------------------------------------------------------------------------------------

    def choose(self, pre: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        """The active features of z̃ [..., F], the strongest first: their z and indices, [..., k]; unused places hold 0."""
        strength = torch.relu(pre.detach()) * self.W_O.detach().norm(dim=-1)
        if self.cfg.activation == "jumprelu":
            strength = strength * (strength > self.threshold.detach())
        most = self.cfg.k if self.cfg.activation == "topk" else max(1, int((strength > 0).sum(-1).max()))
        chosen, indices = topk_rows(strength, min(k or most, most))
        return pre.gather(-1, indices) * (chosen > 0), indices

    def encode_sparse(self, x: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        """The active features only: [B, T, D] → z and int64 indices, both [B, T, k]; z is 0 in places left over."""
        return self.choose(self.pre_activations(x), k)

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations z, [B, T, D] → [B, T, F]."""
        z, indices = self.encode_sparse(x)
        return z.new_zeros(*z.shape[:-1], self.cfg.d_sae).scatter(-1, indices, z)

    def decode(self, z: Tensor) -> Tensor:
        """The layer's output from features, [..., F] → [..., D]."""
        return z @ self.W_O + self.b_D

    def decode_sparse(self, z: Tensor, indices: Tensor) -> Tensor:
        """`decode` of what `encode_sparse` gives: twice [..., k] → [..., D]."""
        return sparse_decode(z, indices, self.W_O, self.b_D)

    def forward(self, x: Tensor) -> Tensor:
        """ŷ in place of the attention layer's output, [B, T, D] → [B, T, D], in the dtype of x."""
        return self.decode_sparse(*self.encode_sparse(x)).to(x.dtype)

    def z_pattern(self, x: Tensor, features: Tensor, positions: Tensor) -> Tensor:
        """What each source token adds to a feature's z̃ at a position, exactly: A[position, source] · (x_source·w_V + b_V).

        Args:
            x: one sequence, [T, D].
            features, positions: int64 [N], pairs.

        Returns:
            [N, T]; a row sums to z̃ of its feature at its position, and is 0 after the position.
        """
        pattern = self.pattern(x[None])[0]  # [G, T, T]
        v = x.to(self.W_V.dtype) @ self.W_V[features].T + self.b_V[features]  # [T, N]
        return pattern[features // self.cfg.group_size, positions] * v.T

    # -- training --------------------------------------------------------------------------------------------------

    def loss(
        self,
        x: Tensor,
        y: Tensor,
        keep_BT: Tensor,
        dead_F: Tensor | None = None,
        *,
        aux_coefficient: float = 0.0,
        k_aux: int | None = None,
    ) -> LossTerms:
        """‖y − ŷ‖² over the positions that count, and AuxK on dead features (as attlas.saes.architectures.auxk has it).

        Args:
            x, y: the layer's input and output, [B, T, D].
            keep_BT: positions that count, bool; all of them are attended to.
            dead_F: features silent for long, bool [F], or None.
        """
        pre_NF = self.pre_activations(x)[keep_BT]
        y_ND = y[keep_BT].to(self.W_O.dtype)
        z_NK, indices_NK = self.choose(pre_NF)
        error_ND = y_ND - self.decode_sparse(z_NK, indices_NK)
        mse = error_ND.pow(2).sum(-1).mean()
        aux = self._aux(pre_NF, error_ND.detach(), dead_F, aux_coefficient, k_aux)
        active_NK = z_NK.detach() > 0
        return LossTerms(
            total=mse + aux,
            terms={"mse": mse.detach(), "auxk": aux.detach()},
            fired_F=torch.bincount(indices_NK[active_NK], minlength=self.cfg.d_sae),
            l0=active_NK.sum(-1).float().mean(),
        )

    def _aux(
        self, pre_NF: Tensor, error_ND: Tensor, dead_F: Tensor | None, coefficient: float, k_aux: int | None
    ) -> Tensor:
        n_dead = int(dead_F.sum()) if dead_F is not None and coefficient > 0 else 0
        if n_dead == 0:
            return pre_NF.new_zeros(())
        assert dead_F is not None
        idx = dead_F.nonzero().squeeze(-1)
        k_full = k_aux or max(1, self.cfg.d_model // 2)
        pre_ND, rows = pre_NF[:, idx], self.W_O[idx]
        picked = topk_rows(torch.relu(pre_ND.detach()) * rows.detach().norm(dim=-1), min(k_full, n_dead))[1]
        guess = torch.zeros_like(pre_ND).scatter(-1, picked, torch.relu(pre_ND.gather(-1, picked))) @ rows
        return coefficient * min(1.0, n_dead / k_full) * (error_ND - guess).pow(2).sum(-1).mean()

    @torch.no_grad()
    def fold_scales(self, scale_in: float, scale_out: float) -> None:
        """Turn a Lorsa of scale_in·x → scale_out·y into the one of x → y, with rows of W_O of norm 1."""
        for weight in (self.W_Q, self.W_K, self.W_V):
            weight.mul_(scale_in)
        self.W_O.div_(scale_out)
        self.b_D.div_(scale_out)
        if self.cfg.activation == "jumprelu":
            self.threshold.div_(scale_out)
        norm_F = self.W_O.norm(dim=-1).clamp_min(1e-12)
        self.W_O.div_(norm_F[:, None])
        self.W_V.mul_(norm_F[:, None])
        self.b_V.mul_(norm_F)

    # -- identity --------------------------------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """16 hex digits of the function: sizes and weights."""
        c = self.cfg
        shape = (c.arch, c.n_qk_heads, c.k, c.activation, c.divisor, c.rotary, c.qk_norm)
        digest = hashlib.sha256(repr(shape).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def metadata(self) -> dict[str, Any]:
        """Headline facts, for a run's summary."""
        c = self.cfg
        sizes = {"arch": c.arch, "d_in": c.d_model, "d_sae": c.d_sae, "k": c.k, "n_qk_heads": c.n_qk_heads}
        return {**sizes, "n_parameters": c.n_parameters, "hook": c.hook_out, "hash": self.hash}

    def extra_repr(self) -> str:
        c = self.cfg
        return f"d_model={c.d_model}, d_sae={c.d_sae}, k={c.k}, n_qk_heads={c.n_qk_heads}, hook='{c.hook_out}'"
