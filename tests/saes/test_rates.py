"""Rates, clipping and the inference threshold that training chooses by itself, against what they are defined to be."""

from __future__ import annotations

import math

import pytest
import torch

from attlas.errors import ConfigError
from attlas.saes import ARCHITECTURES, SAEConfig, TrainConfig
from attlas.saes.architectures import create_sae
from attlas.saes.architectures.batchtopk import THRESHOLD_RATE, BatchTopKSAE
from attlas.saes.base import StepContext
from attlas.saes.training.buffer import MixingBuffer
from attlas.saes.training.loop import train_loop
from attlas.saes.training.rates import MOST, MOST_NARROW, REFERENCE_STEPS, default_learning_rate, gao_rate
from attlas.saes.training.trainer import SAETrainer

D_IN = 12


def planted(chunk: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(chunk)
    directions = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(99))
    return {"h": (torch.rand(256, 40, generator=generator) > 0.9).float() @ directions}


def trained(config: TrainConfig) -> SAETrainer:
    buffer = MixingBuffer(planted, config.buffer_tokens, 0)
    trainer = SAETrainer.start(
        "h",
        "h",
        config.sae_config(D_IN),
        buffer.peek(256)["h"],
        seed=0,
        learning_rate=config.learning_rate(D_IN),
        normalise=True,
        active_subspace=False,
        variance=1.0,
    )
    train_loop([trainer], buffer, config)
    return trainer


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_the_rate_falls_with_a_root_of_the_steps_and_the_root_of_the_width(arch: str) -> None:
    architecture = ARCHITECTURES[arch]
    peak, root = architecture.default_rate, 6 if arch == "standard" else 3
    assert default_learning_rate(architecture, 192, 1536, REFERENCE_STEPS) == pytest.approx(peak)
    assert default_learning_rate(architecture, 192, 1536, 2**root * REFERENCE_STEPS) == pytest.approx(peak / 2)
    assert default_learning_rate(architecture, 192, 1536, 1) == pytest.approx(MOST * peak)
    rates = [default_learning_rate(architecture, 192, 1536, 10**n) for n in range(16)]
    assert default_learning_rate(architecture, 768, 1536, REFERENCE_STEPS) == pytest.approx(peak / 2)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(gao_rate(1536)) == pytest.approx(2e-4 / math.sqrt(1536 / 2**14))


def test_gated_alone_learns_faster_on_narrow_hooks() -> None:
    for name, architecture in ARCHITECTURES.items():
        peak, narrow = architecture.default_rate, 4.0 if name == "gated" else 1.0
        root = 6 if name == "standard" else 3
        assert default_learning_rate(architecture, 96, 768, REFERENCE_STEPS) == pytest.approx(MOST * narrow * peak)
        long_run = default_learning_rate(architecture, 96, 768, 2**root * REFERENCE_STEPS)
        assert long_run == pytest.approx(narrow * peak / math.sqrt(2))
        assert default_learning_rate(architecture, 4, 32, REFERENCE_STEPS) <= MOST_NARROW * MOST * peak


def test_a_configuration_resolves_its_rate_and_clipping() -> None:
    config = TrainConfig(n_tokens=1024 * REFERENCE_STEPS, d_sae=96)
    assert config.learning_rate(192) == pytest.approx(ARCHITECTURES["topk"].default_rate)
    assert TrainConfig(lr=0.25).learning_rate(D_IN) == 0.25
    assert TrainConfig(arch="topk").clip is None
    assert TrainConfig(arch="standard").clip == 1.0
    assert TrainConfig(arch="standard", grad_clip=0).clip is None
    assert TrainConfig(arch="topk", grad_clip=2.5).clip == 2.5
    with pytest.raises(ConfigError, match=r"grad_clip=-1"):
        TrainConfig(grad_clip=-1)


@pytest.mark.parametrize("arch", ["standard", "gated", "jumprelu"])
def test_a_step_uses_the_clipped_gradient(arch: str) -> None:
    """After one step Adam's first moment is (1 − β₁)·gradient, so its norm tells the gradient that was used."""

    def used(grad_clip: float | None) -> float:
        config = TrainConfig(
            arch=arch,
            d_sae=48,
            n_tokens=64,
            batch_size=64,
            buffer_tokens=512,
            lr=1e-3,
            grad_clip=grad_clip,  # type: ignore[arg-type]
        )
        trainer = trained(config)
        moments = [trainer.optimizer.state[p]["exp_avg"] for p in trainer.sae.parameters()]
        return math.sqrt(sum(float(m.double().pow(2).sum()) for m in moments)) / (1 - 0.9)

    assert used(None) == pytest.approx(1.0, rel=1e-4)
    assert used(0.5) == pytest.approx(0.5, rel=1e-4)
    assert used(0) > 2  # the negative control: without clipping it is larger


def test_the_batchtopk_threshold_is_the_running_mean_of_smallest_activations() -> None:
    """Against sorting every batch's activations, in float64, with the weights held still."""
    generator = torch.Generator().manual_seed(3)
    sae = create_sae(SAEConfig(d_in=D_IN, d_sae=48, k=4, arch="batchtopk")).double()
    assert isinstance(sae, BatchTopKSAE)
    sae.W_enc.data.normal_(generator=generator)
    sae.W_dec.data.normal_(generator=generator)
    expected, plain = None, []
    for chunk in range(30):
        x = planted(chunk)["h"][:32].double()
        sae.loss(x, StepContext())
        f = sorted((v for v in (x @ sae.W_enc).detach().flatten().tolist() if v > 0), reverse=True)
        smallest = f[: 4 * 32][-1]
        plain.append(smallest)
        expected = smallest if expected is None else expected + THRESHOLD_RATE * (smallest - expected)
    assert float(sae.threshold[0]) == pytest.approx(expected, rel=1e-12)
    assert bool((sae.threshold == sae.threshold[0]).all())
    assert expected != pytest.approx(plain[-1], rel=1e-3)  # neither the last batch nor zero
    x = planted(99)["h"].double()
    l0 = float((sae.encode(x) > 0).double().sum(-1).mean())
    assert 3.5 < l0 < 4.5  # and at inference it lets through k features a token
