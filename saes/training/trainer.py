"""One sparse autoencoder in training: its weights, optimiser, input scale and count of silent tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from attlas.errors import CheckpointError
from attlas.kernels.gpu import Precision, resolve_precision
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE, LossTerms
from attlas.saes.config import SAEConfig
from attlas.saes.training.fused import FusedStep
from attlas.saes.training.init import initialise
from attlas.saes.training.moments import as_adam, as_fused

ADAM_EPS = 6.25e-10  # of Gao et al. 2024


class Step(Protocol):
    """A training step that takes the place of autograd and `torch.optim.Adam`."""

    def step(self, x_BD: Tensor, dead_F: Tensor, learning_rate: float, penalty_scale: float = 1.0) -> LossTerms:
        """Update on a batch; the terms are of the weights before the update."""

    def state(self) -> dict[str, Tensor]:
        """Optimiser state of its own, by name."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""


@dataclass
class SAETrainer:
    """What belongs to one SAE while it trains.

    Attributes:
        name: unique in a run; the hook, or hook and variant in a sweep.
        hook: whose activations it reads.
        sae: in units of `scale`·x until `finish`.
        optimizer: Adam over all its parameters.
        learning_rate: the peak, before the schedule's factor.
        scale: inputs are multiplied by it, so that E‖x‖ = √D; 1 without normalisation.
        tokens_since_fired_F: tokens since each feature fired last, int64 [F].
        rank: dimension of the subspace the decoder started in.
        fused: the kernel step that takes the place of autograd and `optimizer`, or None.
        precision: of products.
        dead_bound: the most features that can be dead before the next `look_ahead`; None where none has been.
    """

    name: str
    hook: str
    sae: SAE
    optimizer: torch.optim.Adam
    learning_rate: float
    scale: float
    tokens_since_fired_F: Tensor
    rank: int
    fused: Step | None = None
    precision: Precision = "float32"
    dead_bound: int | None = None

    @classmethod
    def start(
        cls,
        name: str,
        hook: str,
        cfg: SAEConfig,
        sample_ND: Tensor,
        *,
        seed: int,
        learning_rate: float,
        normalise: bool,
        active_subspace: bool,
        variance: float,
        encoder_scale: float = 0.5,
        fused: bool = False,
        lazy_adam: bool = False,
        precision: str = "auto",
        graph: bool = True,
        clip: float | None = None,
        of: tuple[int, int] | None = None,
    ) -> Self:
        """A new SAE, initialised from a sample of the activations it will see.

        `of` is (first feature, features) of the wider SAE that this one is a part of (see `initialise`).
        """
        scale = math.sqrt(cfg.d_in) / max(float(sample_ND.norm(dim=-1).mean()), 1e-12) if normalise else 1.0
        sae = create_sae(cfg).to(sample_ND.device)
        generator = torch.Generator().manual_seed(seed)
        rank = initialise(
            sae,
            sample_ND * scale,
            generator,
            active_subspace=active_subspace,
            variance=variance,
            encoder_scale=encoder_scale,
            of=of,
        )
        groups = [
            {"params": [parameter], "scale": sae.rate_scale.get(name, 1.0)}
            for name, parameter in sae.named_parameters()
        ]
        optimizer = torch.optim.Adam(groups, lr=learning_rate, betas=(0.9, 0.999), eps=ADAM_EPS)
        silent = torch.zeros(of[1] if of else cfg.d_sae, dtype=torch.int64, device=sample_ND.device)
        products = resolve_precision(precision if fused or precision != "auto" else "float32", sample_ND.device)
        fits = fused and FusedStep.fits(sae, products)
        kernel = FusedStep(sae, ADAM_EPS, lazy_adam, clip, products, graph) if fits else None
        return cls(name, hook, sae, optimizer, learning_rate, scale, silent, rank, kernel, products)

    def set_learning_rate(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor * group["scale"]

    def count(self, fired_F: Tensor, n_tokens: int) -> None:
        """Note which features fired on a batch of n tokens."""
        self.tokens_since_fired_F += n_tokens
        self.tokens_since_fired_F.masked_fill_(fired_F > 0, 0)

    def dead(self, after: int) -> Tensor:
        """Features silent for `after` tokens or more, bool [F]."""
        return self.tokens_since_fired_F >= after

    def look_ahead(self, n_tokens: int, after: int) -> None:
        """Bound how many features can be dead while n more tokens come. Waits for the device, so that steps need not."""
        self.dead_bound = int((self.tokens_since_fired_F + n_tokens >= after).sum())

    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(torch.isfinite(p).all()) for p in self.sae.parameters())

    def finish(self) -> SAE:
        """The SAE in units of x itself: the scale folded into its biases. The trainer is spent."""
        self.sae.W_enc.data = self.sae.W_enc.data.contiguous()  # the fused step keeps it transposed
        self.sae.fold_scale(self.scale)
        self.scale = 1.0
        self.sae.requires_grad_(False)
        return self.sae.eval()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON values) from which `restore` goes on exactly."""
        tensors = {f"{self.name}/sae/{name}": t.detach().contiguous() for name, t in self.sae.state_dict().items()}
        tensors[f"{self.name}/silent"] = self.tokens_since_fired_F
        if self.fused is not None:
            tensors |= {f"{self.name}/fused/{name}": tensor for name, tensor in self.fused.state().items()}
        for name, parameter in self.sae.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{self.name}/adam/{name}/{key}"] = value
        return tensors, {"scale": self.scale, "rank": self.rank, "learning_rate": self.learning_rate}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take up a saved state.

        Raises:
            CheckpointError: it lacks this trainer's tensors.
        """
        try:
            device = self.tokens_since_fired_F.device
            weights = {name: tensors[f"{self.name}/sae/{name}"] for name in self.sae.state_dict()}
            self.sae.load_state_dict(weights)
            self.tokens_since_fired_F = tensors[f"{self.name}/silent"].to(device)
            if self.fused is not None:
                kept = tensors | as_fused(tensors, self.name)
                self.fused.restore({name: kept[f"{self.name}/fused/{name}"] for name in self.fused.state()})
            if self.fused is None or not self.fused.state():
                tensors = tensors | as_adam(tensors, self.name)
            for name, parameter in self.sae.named_parameters():
                prefix = f"{self.name}/adam/{name}/"
                kept = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                self.optimizer.state[parameter] = {
                    key: value.to("cpu" if key == "step" else device) for key, value in kept.items()
                }
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint does not hold '{self.name}' ({error}); start without resume"
            ) from error
        self.scale, self.rank = float(values["scale"]), int(values["rank"])
        self.learning_rate = float(values["learning_rate"])
