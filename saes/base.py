"""The sparse autoencoder every architecture specialises: x̂ = f·W_dec + b_dec, f = act((x − b_dec)·W_enc + b_enc).

Shapes in names: B batch (tokens), D = d_in, F = d_sae, K = k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attlas.errors import ConfigError
from attlas.kernels import sparse_decode, topk_rows
from attlas.saes.config import SAEConfig


@dataclass(frozen=True)
class StepContext:
    """What a loss needs to know of the training it is part of.

    Attributes:
        dead_F: features that have not fired for long, bool [F], or None before any could be dead.
        penalty_scale: 0 at the start to 1 after the sparsity warm-up; it multiplies λ.
    """

    dead_F: Tensor | None = None
    penalty_scale: float = 1.0


@dataclass
class LossTerms:
    """A loss to call `backward()` on, and what to log of the step.

    Attributes:
        total: scalar.
        terms: its addends by name, detached; "mse" is Σ_D (x − x̂)² averaged over tokens.
        fired_F: how many tokens of the batch each feature was active on, int64 [F].
        l0: mean number of active features a token, scalar.
    """

    total: Tensor
    terms: dict[str, Tensor]
    fired_F: Tensor
    l0: Tensor = field(default_factory=lambda: torch.zeros(()))


class SAE(nn.Module):
    """A sparse autoencoder with the weights W_enc [D,F], b_enc [F], W_dec [F,D], b_dec [D].

    Make one with `create_sae(config)`, `SAE.load(folder)` or `attlas.load_sae(…)`; subclasses, one an architecture,
    implement `activate` and `loss`. Inputs are [..., D], or `hook_z` as it comes, [..., heads, d_head]; a
    reconstruction has the shape of its input.

    Example:
        >>> from attlas import SAE
        >>> again = SAE.load(sae.save(folder / "sae"))
        >>> z = model.capture(text.tokens, hook)[hook]  # [B, T, heads, d_head]
        >>> again.encode(z).shape  # [B, T, features]
        torch.Size([8, 24, 32])
        >>> values, indices = again.encode_sparse(z)
        >>> values.shape, again.decode_sparse(values, indices).shape  # [B, T, k], [B, T, d_in]
        (torch.Size([8, 24, 4]), torch.Size([8, 24, 192]))
        >>> with model.with_saes({hook: again}, use_error_term=False):
        ...     model(text.tokens).shape  # with the reconstruction in place of z
        torch.Size([8, 24, 4096])
    """

    arch: ClassVar[str]
    unit_norm_decoder: ClassVar[bool] = True
    """Whether training keeps decoder rows at norm 1 (otherwise the loss weighs features by their row's norm)."""
    chooses_k: ClassVar[bool] = False
    """Whether cfg.k says how many features are active; otherwise the penalty λ does."""
    nested: ClassVar[bool] = False
    """Whether cfg.widths divides the dictionary into nested prefixes."""
    default_sparsity: ClassVar[float] = 1.0
    """λ when a training configuration gives none."""
    default_rate: ClassVar[float] = 8e-3
    """Best learning rate of 300 steps on 192 dimensions; what other runs take follows from it (attlas.saes.training.rates)."""
    rate_exponent: ClassVar[float | None] = None
    """Power of the steps that the rate falls with, where it is not that of the others."""
    narrow_exponent: ClassVar[float] = 0.0
    """How much faster than others it learns on hooks of fewer than 192 dimensions (attlas.saes.training.rates)."""
    default_clip: ClassVar[float | None] = None
    """Largest gradient norm when a training configuration gives none."""
    rate_scale: ClassVar[dict[str, float]] = {}
    """Parameters that learn at another rate than the rest: name → factor."""
    saelens_arch: ClassVar[str]
    """The SAELens inference class that computes the same function."""
    saelens_names: ClassVar[dict[str, str]] = {}
    """Parameters that SAELens calls otherwise: our name → theirs."""

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        dtype = getattr(torch, cfg.dtype)
        self.W_enc = nn.Parameter(torch.zeros(cfg.d_in, cfg.d_sae, dtype=dtype))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, dtype=dtype))
        self.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, cfg.d_in, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in, dtype=dtype))
        self.requires_grad_(True)

    # -- the function ----------------------------------------------------------------------------------------------

    def pre_activations(self, x: Tensor) -> Tensor:
        """(x − b_dec)·W_enc + b_enc: [..., D] → [..., F]."""
        x = self._normalise(self.flatten_heads(x).to(self.W_enc.dtype))[0]
        return self._centre(x) @ self.W_enc + self.b_enc

    def activate(self, pre: Tensor) -> Tensor:
        """Feature activations from pre-activations, [..., F] → [..., F], as at inference."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations: [..., D] → [..., F]."""
        return self.activate(self.pre_activations(x))

    def encode_sparse(self, x: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        """The active features only, the largest first, equal ones by their index.

        Args:
            x: [..., D].
            k: how many to keep a token; None keeps every active one (TopK: cfg.k).

        Returns:
            values and int64 indices, both [..., k]. Where a token has fewer active features the rest has value 0.
        """
        f = self.encode(x)
        if k is None:
            k = max(1, int((f > 0).sum(-1).max())) if f.numel() else 1
        return topk_rows(f, min(k, self.cfg.d_sae))

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction from features, [..., F] → [..., D] (before any per-token normalisation is undone)."""
        return f @ self.W_dec + self.b_dec

    def decode_like(self, f: Tensor, x: Tensor) -> Tensor:
        """Reconstruction of x [..., D] from its features, edited or not, any per-token normalisation undone."""
        return self._normalise(x.to(self.W_enc.dtype))[1](self.decode(f))

    def decode_sparse(self, values: Tensor, indices: Tensor) -> Tensor:
        """Reconstruction from `encode_sparse`'s answer: twice [..., k] → [..., D]."""
        return sparse_decode(values, indices, self.W_dec, self.b_dec)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction x̂, in the shape and dtype of x."""
        flat, restore = self._normalise(self.flatten_heads(x).to(self.W_enc.dtype))
        return restore(self._reconstruct(flat)).reshape(x.shape).to(x.dtype)

    def _reconstruct(self, x: Tensor) -> Tensor:
        """x̂ of an input already normalised, [..., D] → [..., D]."""
        return self.decode(self.activate(self._centre(x) @ self.W_enc + self.b_enc))

    def flatten_heads(self, x: Tensor) -> Tensor:
        """[..., D] as it is, [..., heads, d_head] to [..., D].

        Raises:
            ConfigError: neither fits d_in.
        """
        if x.shape[-1] == self.cfg.d_in:
            return x
        if x.ndim >= 2 and x.shape[-2] * x.shape[-1] == self.cfg.d_in:
            return x.flatten(-2)
        width = x.shape[-2] * x.shape[-1] if self.cfg.n_heads and x.ndim >= 3 else x.shape[-1]
        hook, model = self.cfg.hook_name or "an unnamed hook", self.cfg.model_name or "an unnamed model"
        raise ConfigError(
            f"the SAE has d_in={self.cfg.d_in} and the activations have {width} (shape {list(x.shape)}); "
            f"it was trained on '{hook}' of '{model}'"
        )

    def _centre(self, x: Tensor) -> Tensor:
        return x - self.b_dec if self.cfg.apply_b_dec_to_input else x

    def token_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(shift, divisor, factor) [..., 1] of tokens [..., D]: the encoder reads (x − shift) / divisor, and a
        reconstruction y of that is y · factor + shift (SAELens's definitions)."""
        zero, one = torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])
        if self.cfg.normalisation == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            std = (x - mean).std(-1, keepdim=True)
            return mean, std + 1e-5, std
        if self.cfg.normalisation == "constant_norm_rescale":
            norm = x.norm(dim=-1, keepdim=True) / self.cfg.d_in**0.5
            return zero, norm, norm
        return zero, one, one

    def _normalise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Per-token normalisation of some foreign SAEs, and its inverse."""
        if self.cfg.normalisation == "none":
            return x, lambda y: y
        shift, divisor, factor = self.token_statistics(x)
        return (x - shift) / divisor, lambda y: y * factor + shift

    # -- training --------------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, step: StepContext) -> LossTerms:
        """The architecture's loss on a batch [B, D]."""
        raise NotImplementedError

    @torch.no_grad()
    def before_step(self) -> None:
        """Between `backward()` and the optimiser's step: take out gradient that would only stretch decoder rows."""
        if self.unit_norm_decoder and self.W_dec.grad is not None:
            parallel = (self.W_dec.grad * self.W_dec).sum(-1, keepdim=True)
            self.W_dec.grad -= parallel * self.W_dec

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimiser's step: bring decoder rows back to norm 1."""
        if self.unit_norm_decoder:
            self.W_dec.div_(self.W_dec.norm(dim=-1, keepdim=True).clamp_min(1e-8))

    def activation_scaled(self) -> list[Tensor]:
        """Tensors in units of activations, which scale with them (biases, thresholds)."""
        return [self.b_enc, self.b_dec]

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Turn an SAE of `scale`·x into the equal SAE of x: x̂ and f are divided by `scale`, W_enc and W_dec stay."""
        for tensor in self.activation_scaled():
            tensor.mul_(1 / scale)

    # -- files and identity ----------------------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """16 hex digits of the architecture and the weights."""
        digest = hashlib.sha256(f"{self.cfg.arch} {self.cfg.k}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> Path:
        """Write `cfg.json` and `sae_weights.safetensors`, which SAELens reads too; atomic."""
        from attlas.saes.formats import saelens

        return saelens.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> SAE:
        """Read a folder written by `save`, or by SAELens.

        Raises:
            SAEFormatError: files are missing, damaged or of a newer format.
        """
        from attlas.saes.formats import saelens

        return saelens.load(Path(folder)).to(device)

    def extra_repr(self) -> str:
        c = self.cfg
        return f"{c.arch}, d_in={c.d_in}, d_sae={c.d_sae}, k={c.k}, hook='{c.hook_name}', model='{c.model_name}'"

    def metadata(self) -> dict[str, Any]:
        """Headline facts, for a run's summary."""
        c = self.cfg
        return {"arch": c.arch, "d_in": c.d_in, "d_sae": c.d_sae, "k": c.k, "hook": c.hook_name, "hash": self.hash}


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Σ_D (x − x̂)², averaged over tokens: the reconstruction loss of every architecture here."""
    return (x - x_hat).pow(2).sum(-1).mean()
