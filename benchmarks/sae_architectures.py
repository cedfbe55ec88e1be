"""One training step of every architecture, ours as `attlas train` takes it, and SAELens's class of the same name.

Both see the same activations and start from the same weights; JumpReLU's thresholds are set so that k features are active a
token, with our default bandwidth in both. No feature is dead, so AuxK adds nothing. SAELens clips no gradient here; ours
does where training does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "standard")
L1 = 0.1  # weight of the sparsity penalty, where there is one; it does not change the time


def pair(arch: str, D: int, F: int, k: int, N: int) -> dict[str, Callable[[], object]]:
    """Ours and theirs; ours alone without SAELens."""
    torch.manual_seed(0)
    x = torch.randn(N, D)
    W_dec = torch.nn.functional.normalize(torch.randn(F, D), dim=-1)
    threshold = float((x[:256] @ W_dec.t()).view(-1).topk(min(N, 256) * k).values[-1])
    found = {f"attlas {arch}": ours(arch, x, W_dec, k, threshold)}
    try:
        found[f"SAELens {arch}"] = theirs(arch, x, W_dec, k, threshold)
    except ImportError:
        print("SAELens: not installed", file=sys.stderr)
    return found


def widths(F: int) -> tuple[int, ...]:
    """Matryoshka's prefixes, as by default here."""
    return tuple(F // n for n in (16, 8, 4, 2, 1))


def ours(arch: str, x: Tensor, W_dec: Tensor, k: int, threshold: float) -> Callable[[], object]:
    from attlas.saes import TrainConfig
    from attlas.saes.architectures import create_sae
    from attlas.saes.base import StepContext
    from attlas.saes.training.fused import FusedStep

    F, D = W_dec.shape
    config = TrainConfig(arch=arch, d_sae=F, k=k, sparsity=L1, widths=widths(F) if arch == "matryoshka" else ())
    sae = create_sae(config.sae_config(D))
    with torch.no_grad():
        sae.W_dec.copy_(W_dec)
        sae.W_enc.copy_(W_dec.t())
        if arch == "jumprelu":
            sae.get_parameter("threshold").fill_(threshold)
    alive = torch.zeros(F, dtype=torch.bool)
    if FusedStep.fits(sae):
        fused = FusedStep(sae, 1e-8, clip=config.clip)
        return lambda: fused.step(x, alive, 1e-4)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)

    def step() -> None:
        adam.zero_grad()
        sae.loss(x, StepContext(dead_F=alive)).total.backward()
        sae.before_step()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(sae.parameters(), config.clip)
        adam.step()
        sae.after_step()

    return step


def theirs(arch: str, x: Tensor, W_dec: Tensor, k: int, threshold: float) -> Callable[[], object]:
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    from attlas.saes import TrainConfig

    F, D = W_dec.shape
    more: dict[str, dict[str, object]] = {
        "topk": {"k": k},
        "batchtopk": {"k": k},
        "matryoshka": {"k": k, "matryoshka_widths": list(widths(F))},
        "jumprelu": {"jumprelu_init_threshold": threshold, "jumprelu_bandwidth": TrainConfig.bandwidth},
        "gated": {},
        "standard": {},
    }
    stems = {"topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK", "jumprelu": "JumpReLU"}
    stem = f"{stems.get(arch, arch.title())}TrainingSAE"
    sae = getattr(sae_lens, stem)(getattr(sae_lens, f"{stem}Config")(d_in=D, d_sae=F, device="cpu", **more[arch]))
    with torch.no_grad():
        sae.W_dec.copy_(W_dec)
        sae.W_enc.copy_(W_dec.t())
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)
    coefficients = dict.fromkeys(sae.get_coefficients(), L1)

    def step() -> None:
        given = TrainStepInput(
            sae_in=x, coefficients=coefficients, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
        adam.zero_grad()
        sae.training_forward_pass(given).loss.backward()
        adam.step()

    return step
