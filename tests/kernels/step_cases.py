"""The training step's Triton kernels against their twins in torch; run by test_gpu_step.py where the interpreter is on.

The twins are checked against autograd for many steps there; here one step of each architecture, and what it leaves in
weights, moments (which hold the gradients) and report.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from torch import Tensor

from attlas.kernels.gpu import GPUStep, Precision
from attlas.saes.training.fused import gpu_step

from .made_steps import LR, F, batch, new_sae
from .triton_cases import interpreter as interpreter  # rounds to bfloat16 as a GPU does

device = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
N = 5
slow = pytest.mark.skipif(
    not os.environ.get("ATTLAS_COMPILE_ALL") and device == "cpu", reason="with ATTLAS_COMPILE_ALL"
)
DEAD = torch.arange(F) % 3 == 0


def one_step(
    arch: str,
    precision: Precision,
    clip: float | None,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    x: Tensor | None = None,
) -> tuple[GPUStep, dict[str, Tensor]]:
    monkeypatch.setenv("ATTLAS_KERNELS", path)
    sae = new_sae(arch, "float32").to(device)
    step = gpu_step(sae, precision=precision, clip=clip, graph=False)
    if arch == "matryoshka":
        step.slots = F  # type: ignore[attr-defined]  # its choice is TopK's, and slow to interpret
    x = batch(0, N).float() if x is None else x
    dead = DEAD.to(device) if step.options.k_aux else None
    found = step.step(x.to(device), dead, lr=LR, aux_weight=0.5, penalty=0.05)
    kept = {name: tensor.clone().cpu() for name, tensor in step.state().items()}
    kept |= {name: getattr(step, name).clone().cpu() for name, _ in sae.named_parameters()}
    kept |= {field.name: getattr(found, field.name).clone().cpu() for field in dataclasses.fields(found)}
    return step, kept


@pytest.mark.parametrize(
    ("arch", "precision", "clip"),
    [
        ("topk", "bfloat16", 0.3),
        ("matryoshka", "bfloat16", None),
        ("jumprelu", "bfloat16", 0.3),
        ("gated", "float32", None),
        pytest.param("topk", "float32", None, marks=slow),
        pytest.param("batchtopk", "float32", 0.3, marks=slow),
        pytest.param("standard", "float32", 0.3, marks=slow),
    ],
)
def test_a_step_equals_its_twin(
    arch: str, precision: Precision, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plain = one_step(arch, precision, clip, monkeypatch, "torch")
    step, ours = one_step(arch, precision, clip, monkeypatch, "triton")
    near = {"float32": (2e-6, 2e-5), "bfloat16": (2e-4, 2e-2)}[
        precision
    ]  # bfloat16: sums in another order round otherwise
    assert torch.equal(ours.pop("fired"), plain["fired"])
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, plain[name], atol=near[0], rtol=near[1], msg=lambda m, n=name: f"{n}: {m}")
    assert float(plain["exp_avg/encoder"].abs().max()) > 0
    assert float(plain["other"]) > 0
    if precision == "bfloat16":
        assert torch.equal(step.matrices["W_dec"].shadow, step.W_dec.to(torch.bfloat16))


def test_loss_that_is_no_number_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    x = batch(0, 2).float()
    x[1, 2] = torch.nan
    step, _ = one_step("standard", "float32", None, monkeypatch, "triton", x)
    assert step.spoilt() == 1
