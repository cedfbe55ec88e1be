"""The step as a GPU takes it: in torch against autograd and torch's Adam, its kernels in the interpreter, and its graph."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from attlas.errors import ConfigError
from attlas.kernels.gpu import CapturedStep, resolve_precision
from attlas.saes.architectures import ARCHITECTURES
from attlas.saes.base import StepContext
from attlas.saes.training.fused import FusedStep, gpu_step

from .made_steps import LR, F, batch, new_sae

N = 12


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_steps_equal_autograd(arch: str, clip: float | None) -> None:
    """Loss, report, firing and all weights over 12 steps in float64, with AuxK from step 4 on."""
    sae, theirs = new_sae(arch), new_sae(arch)
    step = gpu_step(sae, precision="float32", clip=clip)
    groups = [{"params": [p], "lr": LR * sae.rate_scale.get(name, 1.0)} for name, p in theirs.named_parameters()]
    adam = torch.optim.Adam(groups, lr=LR, eps=1e-8)
    auxiliary, clipped = 0.0, 0
    for i in range(12):
        x, dead = batch(i, N), torch.arange(F) % 5 == 0 if i >= 4 and step.options.k_aux else None
        terms = theirs.loss(x, StepContext(dead_F=dead))
        found = step.step(x, dead, lr=LR, penalty=sae.cfg.sparsity, aux_columns=None if i < 8 else 7)
        assert float(found.total) == pytest.approx(float(terms.total.detach()), rel=1e-12)
        assert float(found.mse) == pytest.approx(float(terms.terms["mse"]), rel=1e-12)
        assert float(found.l0) == pytest.approx(float(terms.l0), rel=1e-6)
        assert torch.equal(found.fired, terms.fired_F)
        auxiliary += float(terms.terms.get("auxk", terms.terms.get("revival", 0.0)))
        adam.zero_grad()
        terms.total.backward()
        theirs.before_step()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip if clip is not None else math.inf)
        clipped += clip is not None and float(norm) > clip
        adam.step()
        theirs.after_step()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(getattr(step, name), parameter.data, atol=1e-12, rtol=1e-10, msg=name)
        assert not torch.allclose(parameter, dict(sae.named_parameters())[name], atol=1e-3)
    assert clip is None or clipped > 5
    assert auxiliary > 0 or not step.options.k_aux


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_a_recorded_step_reads_buffers_alone_and_goes_on_from_its_state(arch: str) -> None:
    """Replaying a body recorded at step 4 is the same training as running it; so is going on from a checkpoint."""
    plain, replayed = (FusedStep(new_sae(arch, "float32"), 1e-8, clip=0.3, precision="bfloat16") for _ in range(2))

    class Kept:
        def __init__(self, body: Callable[[], None]) -> None:
            self.replay = body

    replayed._kernel.captured = CapturedStep(True, Kept)  # type: ignore[union-attr]
    dead = torch.arange(F) % 5 == 0
    for i in range(8):
        terms = [step.step(batch(i, N).float(), dead, LR, 0.5) for step in (plain, replayed)]
        assert torch.equal(terms[0].total, terms[1].total)
    assert replayed._kernel.captured.n_replayed > 0  # type: ignore[union-attr]
    again = FusedStep(plain.sae, 1e-8, clip=0.3, precision="bfloat16")
    again.restore({name: tensor.clone() for name, tensor in plain.state().items()})
    assert torch.equal(
        again.step(batch(9, N).float(), dead, LR).total, replayed.step(batch(9, N).float(), dead, LR).total
    )
    assert all(torch.equal(a, b) for a, b in zip(again.sae.parameters(), replayed.sae.parameters(), strict=True))


def test_a_recording_that_fails_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(body: Callable[[], None]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    runs: list[int] = []
    captured = CapturedStep(True, refuse)  # type: ignore[arg-type]
    with caplog.at_level("WARNING", logger="attlas.kernels"):
        for i in range(8):
            captured.run("key", lambda i=i: runs.append(i))  # type: ignore[misc]
    assert runs == list(range(8))
    assert len(caplog.records) == 1
    assert "not permitted" in caplog.text


def test_another_key_is_recorded_anew() -> None:
    class Counted:
        def __init__(self, body: Callable[[], None]) -> None:
            made.append(body)

        def replay(self) -> None:
            pass

    made: list[Callable[[], None]] = []
    captured = CapturedStep(True, Counted)
    for key in (1, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1):
        captured.run(key, lambda: None)
    assert len(made) == 3
    assert captured.n_replayed == 4


def test_a_row_that_fills_its_slots_gets_more() -> None:
    """One row far larger than the others takes nearly all of the batch's choices."""
    sae = new_sae("batchtopk")
    step = gpu_step(sae, precision="float32", clip=None)
    x = 0.01 * batch(0, N)
    x[3] *= 1e4
    assert step.slots == 8  # type: ignore[attr-defined]
    step.slots = 2  # type: ignore[attr-defined]
    found = step.step(x, lr=LR)
    assert step.slots > 2  # type: ignore[attr-defined]
    assert torch.equal(found.fired, sae.loss(x, StepContext()).fired_F)


def test_precisions_a_device_lacks() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == "float32"
    assert resolve_precision("bfloat16", cpu) == "bfloat16"
    with pytest.raises(ConfigError, match=r"precision=tf32 needs a CUDA GPU of compute capability 8.0; on 'cpu'"):
        resolve_precision("tf32", cpu)
    with pytest.raises(ConfigError, match="precision=int8 is unknown"):
        resolve_precision("int8", cpu)


@pytest.mark.parametrize(("capability", "auto"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_follows_the_gpu(capability: tuple[int, int], auto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    assert resolve_precision("auto", gpu) == auto
    if auto == "float32":
        with pytest.raises(ConfigError, match="precision=bfloat16 needs"):
            resolve_precision("bfloat16", gpu)
    else:
        assert resolve_precision("tf32", gpu) == "tf32"
