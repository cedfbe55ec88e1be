"""The sparse step of every architecture on the CPU: against autograd and torch's Adam, and against loops in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from attlas.kernels import StepOptions
from attlas.kernels.cpu import choose, crew
from attlas.kernels.cpu.step import BatchTopKStep, JumpReLUStep, SparseStep, TopKOnCPU
from attlas.saes import SAEConfig
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE, StepContext
from attlas.saes.training.fused import FusedStep

D, F, N, K, LR = 6, 64, 24, 3, 3e-3
ARCHS = ("topk", "batchtopk", "matryoshka", "jumprelu")


def new_sae(arch: str, dtype: str = "float64", d_sae: int = F) -> SAE:
    widths = (8, 24, d_sae) if arch == "matryoshka" else ()
    cfg = SAEConfig(
        d_in=D, d_sae=d_sae, arch=arch, k=K, k_aux=4, widths=widths, dtype=dtype, sparsity=0.05, bandwidth=0.4
    )
    sae = create_sae(dataclasses.replace(cfg, aux_coefficient=0.5))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        W = torch.nn.functional.normalize(torch.randn(d_sae, D, generator=g, dtype=torch.float64), dim=-1)
        sae.W_dec.copy_(W)
        sae.W_enc.copy_(W.t() + 0.1 * torch.randn(D, d_sae, generator=g, dtype=torch.float64))
        sae.b_enc.copy_(0.1 * torch.randn(d_sae, generator=g, dtype=torch.float64))
        sae.b_dec.copy_(0.1 * torch.randn(D, generator=g, dtype=torch.float64))
        if arch == "jumprelu":
            sae.get_parameter("threshold").fill_(1.2)
    return sae


def batch(i: int, n: int = N) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64)


def kernel_of(sae: SAE, clip: float | None = None, lazy: bool = False) -> SparseStep:
    options = StepOptions(k=K, lr=LR, k_aux=4, lazy=lazy, betas=(0.5, 0.9) if lazy else (0.9, 0.999))
    weights = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    if sae.cfg.arch == "topk":
        return TopKOnCPU(*weights, options, clip)
    if sae.cfg.arch == "jumprelu":
        found = JumpReLUStep(
            *weights, options, clip, threshold=sae.get_parameter("threshold"), bandwidth=sae.cfg.bandwidth
        )
        found.penalty = sae.cfg.sparsity
        return found
    kernel = BatchTopKStep(*weights, options, clip)
    kernel.widths = getattr(sae, "widths", ())
    return kernel


def adam_of(sae: SAE, betas: tuple[float, float]) -> torch.optim.Adam:
    groups = [{"params": [p], "lr": LR * sae.rate_scale.get(name, 1.0)} for name, p in sae.named_parameters()]
    return torch.optim.Adam(groups, lr=LR, betas=betas, eps=1e-8)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_steps_equal_autograd(arch: str, lazy: bool, clip: float | None) -> None:
    """Losses, firing, the threshold's average and all weights over 60 steps, with AuxK from step 20 on."""
    sae, theirs = new_sae(arch), new_sae(arch)
    kernel, adam = kernel_of(sae, clip, lazy), adam_of(theirs, (0.5, 0.9) if lazy else (0.9, 0.999))
    dead = torch.arange(F) % 5 == 0
    clipped = 0
    for i in range(60):
        x, dead_now = batch(i), dead if i >= 20 else None
        terms = theirs.loss(x, StepContext(dead_F=dead_now))
        result = kernel.step(x, dead_now, aux_weight=0.5)
        assert float(result.errors[-1]) == pytest.approx(float(terms.terms["mse"]), rel=1e-9)
        assert float(result.aux_loss) == pytest.approx(float(terms.terms.get("auxk", 0.0)), rel=1e-7)
        assert torch.equal(result.fired, terms.fired_F)
        if "nested" in terms.terms:
            assert float(result.errors.mean()) == pytest.approx(float(terms.terms["nested"]), rel=1e-9)
        norm = autograd_step(theirs, terms.total, clip, adam)
        clipped += clip is not None and norm > clip
    assert clip is None or clipped > 5
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(getattr(kernel, name), parameter.data, atol=1e-7, rtol=1e-6, msg=name)
    assert not torch.allclose(kernel.W_dec, sae.W_dec, atol=1e-3)


def autograd_step(sae: SAE, loss: Tensor, clip: float | None, adam: torch.optim.Adam) -> float:
    adam.zero_grad()
    loss.backward()
    sae.before_step()
    norm = float(torch.nn.utils.clip_grad_norm_(sae.parameters(), clip if clip is not None else math.inf))
    adam.step()
    sae.after_step()
    return norm


def test_one_jumprelu_gradient_by_loops() -> None:
    """Every pair of a batch in float64, by the paper's formulas: the threshold's straight-through gradient too."""
    sae = new_sae("jumprelu")
    kernel, x, eps = kernel_of(sae), batch(0), sae.cfg.bandwidth
    seen: dict[str, Tensor] = {}
    kernel._update = lambda gradients, vectors, lr: seen.update(  # type: ignore[method-assign,assignment]
        vectors, encoder=gradients["encoder"].at(slice(0, F)), W_dec=gradients["W_dec"].at(slice(0, F))
    )
    kernel.step(x)
    W_enc, b_enc, W_dec, b_dec, theta = (
        getattr(sae, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    )
    want = {name: torch.zeros_like(tensor) for name, tensor in seen.items()}
    n_window = 0
    for n in range(N):
        pre = [float((x[n] - b_dec) @ W_enc[:, f] + b_enc[f]) for f in range(F)]
        fires = [p > float(t) and p > 0 for p, t in zip(pre, theta, strict=True)]
        x_hat = b_dec + sum(pre[f] * W_dec[f] for f in range(F) if fires[f])
        grad = 2 / N * (x_hat - x[n])
        want["b_dec"] += grad
        for f in range(F):
            d_f = float(grad @ W_dec[f])
            if fires[f]:
                want["W_dec"][f] += pre[f] * grad
                want["encoder"][f] += d_f * (x[n] - b_dec)
                want["b_enc"][f] += d_f
                want["b_dec"] -= d_f * W_enc[:, f]
            if abs(pre[f] - float(theta[f])) < eps / 2:
                n_window += not fires[f]
                want["threshold"][f] -= float(theta[f]) / eps * d_f + 0.05 / eps / N
    assert n_window > 20  # pairs that do not fire, and still move a threshold
    for name, tensor in seen.items():
        torch.testing.assert_close(tensor, want[name], atol=1e-12, rtol=1e-9, msg=name)


def test_batch_choice_with_ties_and_wrong_guesses() -> None:
    """The N·k largest by a full sort, ties to the lower row and feature, wherever the search begins."""
    g = torch.Generator().manual_seed(3)
    for width in (64, 128, 70):  # 70: not in blocks
        encoder = torch.randint(-2, 3, (width, D), generator=g).double()
        x = torch.randint(-2, 3, (40, D), generator=g).double()
        flat = (x @ encoder.t()).relu().view(-1)
        order = flat.sort(descending=True, stable=True).indices[: 40 * 5]
        want = order[flat[order] > 0].sort().values
        for guess in (0.0, 1e-3, 4.0, 1e6):
            pairs = choose.top_of_batch(x, encoder, torch.zeros(width, dtype=torch.float64), 5, guess)
            assert torch.equal(pairs.rows * width + pairs.features, want)
            assert torch.equal(pairs.values, flat[want])
    all_negative = choose.top_of_batch(x, encoder, torch.full((width,), -1e3, dtype=torch.float64), 5, 0.0)
    assert all_negative.values.numel() == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_results_do_not_depend_on_threads(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and crews of two and three, to the bit; with sizes that several tiles share."""
    monkeypatch.setattr(crew, "SMALL", 1)
    usual, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            kernel = kernel_of(new_sae(arch, "float32", 4096), clip=0.3)
            for i in range(3):
                kernel.step(batch(i, 300).float(), torch.arange(4096) % 5 == 0)
            found.append((kernel.W_enc, kernel.W_dec, *kernel.vectors.values()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(usual)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_an_error_in_a_tile_reaches_the_caller_and_the_crew_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    team = crew.Crew(2)
    with pytest.raises(ZeroDivisionError):
        team.lead(lambda: team.share([1, 0, 2], lambda tile: 1 // tile))
    with pytest.raises(ZeroDivisionError):
        team.share([0], lambda tile: 1 // tile)
    done: list[int] = []
    # leaders that wait for one another would never end: each thread of the crew leads at once
    waiting = [team._pool.submit(lambda: team.share(range(50), done.append)) for _ in range(4)]
    for leader in waiting:
        leader.result(timeout=20)
    assert sorted(done) == sorted(list(range(50)) * 4)


def test_dense_jumprelu_takes_the_same_step() -> None:
    """Low thresholds: most pairs matter, so gradients come from dense products, and the update is still Adam's."""
    sae, theirs = new_sae("jumprelu", "float32"), new_sae("jumprelu", "float32")
    for s in (sae, theirs):
        with torch.no_grad():
            s.get_parameter("threshold").fill_(0.1)
    fused = FusedStep(sae, 1e-8, clip=1.0)
    assert fused._kernel.density(batch(0).float()) > 0.3  # type: ignore[union-attr]
    adam = adam_of(theirs, (0.9, 0.999))
    for i in range(20):
        x = batch(i).float()
        dead = torch.arange(F) % 5 == (0 if i >= 10 else 7)
        terms = fused.step(x, dead, LR, penalty_scale=0.5)
        expected = theirs.loss(x, StepContext(dead_F=dead, penalty_scale=0.5))
        assert (float(terms.terms["auxk"]) > 0) == bool(dead.any())
        assert float(terms.total.detach()) == pytest.approx(float(expected.total.detach()), rel=1e-4)
        autograd_step(theirs, expected.total, 1.0, adam)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(getattr(sae, name), parameter, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
def test_the_inference_threshold_is_averaged_as_before(arch: str) -> None:
    sae, theirs = new_sae(arch, "float32"), new_sae(arch, "float32")
    fused, adam = FusedStep(sae, 1e-8), adam_of(theirs, (0.9, 0.999))
    for i in range(10):
        x = batch(i).float()
        terms = fused.step(x, torch.zeros(F, dtype=torch.bool), LR)
        expected = theirs.loss(x, StepContext(dead_F=None))
        autograd_step(theirs, expected.total, None, adam)
        assert float(terms.l0) == pytest.approx(float(expected.l0))
    assert float(sae.threshold[0]) > 0
    torch.testing.assert_close(sae.threshold, theirs.threshold, atol=1e-5, rtol=1e-4)
