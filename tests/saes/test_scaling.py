"""The plan of a training: its figures beside real tensors and torch's own count of operations; docs/scaling.md beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attlas.cli import main
from attlas.errors import ConfigError, HookNameError
from attlas.interp import HookedModel
from attlas.saes import ARCHITECTURES, SAEConfig, TrainConfig, plan
from attlas.saes.architectures import create_sae
from attlas.saes.base import StepContext
from attlas.saes.scaling.costs import TOPK, WORKSPACE, buffer_bytes, sae_costs
from attlas.saes.scaling.shapes import PUBLISHED, model_shape
from attlas.saes.scaling.table import model_table, sae_table
from attlas.saes.training.buffer import MixingBuffer
from attlas.saes.training.fused import gpu_step

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_and_adam_are_those_of_a_training(arch: str) -> None:
    sae = create_sae(SAEConfig(d_in=24, d_sae=80, arch=arch, k=4))
    adam = torch.optim.Adam(sae.parameters())
    sae.loss(torch.randn(16, 24), StepContext()).total.backward()
    adam.step()
    costs = sae_costs(arch, 24, 80, k=4, batch=16, fused=False)
    held = sum(p.numel() for p in sae.parameters())
    assert costs.parameters == held
    assert costs.weights == costs.gradients == 4 * held
    moments = [t for state in adam.state.values() for name, t in state.items() if name != "step"]
    assert costs.adam == sum(t.numel() * t.element_size() for t in moments)


@pytest.mark.parametrize("arch", ["standard", "jumprelu", "gated"])
def test_operations_are_what_torch_counts(arch: str) -> None:
    """Dense architectures: forward and backward products, and nothing else."""
    sae = create_sae(SAEConfig(d_in=24, d_sae=80, arch=arch, k=4))
    torch.nn.init.normal_(sae.W_enc)
    with FlopCounterMode(display=False) as counter:
        sae.loss(torch.randn(16, 24), StepContext()).total.backward()
    costs = sae_costs(arch, 24, 80, k=4, batch=16, fused=False, dead=0.0)
    assert costs.flops == counter.get_total_flops()


@pytest.mark.parametrize("arch", ["standard", "jumprelu", "gated"])
def test_operations_of_the_fused_step_are_what_torch_counts(arch: str) -> None:
    sae = create_sae(SAEConfig(d_in=24, d_sae=80, arch=arch, k=4))
    torch.nn.init.normal_(sae.W_enc)
    step = gpu_step(sae, precision="bfloat16", clip=None)
    with FlopCounterMode(display=False) as counter:
        step.step(torch.randn(16, 24))
    costs = sae_costs(arch, 24, 80, k=4, batch=16, dead=0.0)
    assert costs.flops == counter.get_total_flops()
    assert costs.gradients == 2 * 2 * 24 * 80


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_fused_step_holds_what_is_said(arch: str, precision: str) -> None:
    """Weights, copies and moments to the byte, and what a step keeps; what comes and goes is taken off by its shapes."""
    N, D, F = 64, 24, 96
    sae = create_sae(SAEConfig(d_in=D, d_sae=F, arch=arch, k=4))
    torch.nn.init.normal_(sae.W_enc)
    step = gpu_step(sae, precision=precision, clip=None)  # type: ignore[arg-type]
    costs = sae_costs(arch, D, F, k=4, batch=N, precision=precision, dead=0.0)
    shadows = [m.shadow for m in step.matrices.values() if m.shadow is not m.master]
    held = [m.master for m in step.matrices.values()] + [step.vectors.flat]
    assert costs.weights == sum(t.numel() * t.element_size() for t in [*held, *shadows])
    assert costs.adam == 2 * sum(4 * t.numel() for t in held)
    step.step(torch.randn(N, D))
    names = ("centred", "grads", "f", "index", "keys", "values", "d_pre", "offsets")
    kept = {t.untyped_storage()._cdata: t for n in names if (t := getattr(step, n, None)) is not None}
    if step.centred_narrow is not step.centred:
        kept |= {0: step.centred_narrow}
    bytes_kept = sum(t.numel() * t.element_size() for t in kept.values())
    made = costs.step - WORKSPACE if arch in TOPK else costs.step
    item, groups = (2 if precision == "bfloat16" else 4), 2 if arch == "gated" else 1
    if arch not in TOPK:  # u, the gradient of f, and the reconstructions come and go
        made -= N * item * (F * (1 + groups) + D * groups)
    if precision == "float32":
        made -= N * D * 4  # there is no rounded copy of the inputs
    assert made == pytest.approx(bytes_kept, rel=0.03)


def test_the_buffer_holds_what_is_said() -> None:
    rows = {"a": torch.randn(64, 8), "b": torch.randn(64, 4)}
    buffer = MixingBuffer(lambda chunk: rows, 256, 0, torch.bfloat16)
    buffer.fill()
    held, peak = buffer_bytes([8, 4], 256, 2)
    assert held == sum(r.numel() * r.element_size() for r in buffer.rows.values())
    assert held < peak < 3 * held


def test_shapes_count_the_parameters_of_the_model(gpt2_mini: HookedModel) -> None:
    shape = model_shape("gpt2-mini")
    assert shape.parameters == sum(p.numel() for p in gpt2_mini.hf.parameters())
    cfg = gpt2_mini.cfg
    for name in ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "d_vocab"):
        assert getattr(shape, name) == getattr(cfg, name)
    published = {"gpt2": 124.4e6, "smollm2-135m": 134.5e6, "llama-3.2-1b": 1.236e9, "llama-3.1-8b": 8.03e9}
    for name, parameters in {**published, "llama-3.1-70b": 70.55e9}.items():
        assert PUBLISHED[name].parameters == pytest.approx(parameters, rel=0.01)
    assert model_shape("meta-llama/Llama-3.1-8B-Instruct") is PUBLISHED["llama-3.1-8b"]


def test_forward_operations_are_what_torch_counts(gpt2_mini: HookedModel) -> None:
    tokens = torch.randint(0, 4096, (2, 64))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        gpt2_mini.capture(tokens, ["blocks.3.hook_resid_post"])
    shape = model_shape("gpt2-mini")
    attention = (
        4 * 2.0 * 64 * 64 * 192 * 2
    )  # torch counts the masked half of attention too, or none of it on a CPU kernel
    ours = shape.flops(4, 64) * tokens.numel()
    assert ours - attention <= counter.get_total_flops() <= ours + attention


def test_processes_share_the_memory() -> None:
    config = TrainConfig(d_sae=8192, k=8, batch_size=1024, hooks=("blocks.*.attn.hook_z",), buffer_tokens=4096)
    alone = plan(config)
    assert (alone.form, alone.tokens_per_second > 0) == ("alone", True)
    hooks, data, features = (plan(config, processes=4, form=form) for form in ("hooks", "data", "features"))
    assert plan(config, processes=4).form == "hooks"
    assert hooks.memory["Adam"] == alone.memory["Adam"] / 4 < data.memory["Adam"] == alone.memory["Adam"]
    assert features.memory["weights"] == pytest.approx(data.memory["weights"] / 4, rel=0.01)
    assert data.memory["weights"] < alone.memory["weights"] < 1.6 * data.memory["weights"]  # with copies in bfloat16
    assert alone.sent == 0 < hooks.sent < data.sent
    small = plan(config, memory=50e6)
    assert small.misfits
    assert small.advice()
    assert all("GB to use" in line for line in small.misfits)


@pytest.mark.parametrize(
    ("processes", "form", "says"),
    [(3, "data", "batch_size=1024"), (3, "features", "d_sae=512"), (2, "hooks", "1 hooks"), (128, "features", "k=16")],
)
def test_what_cannot_be_shared_is_refused(processes: int, form: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(TrainConfig(d_sae=512), processes=processes, form=form)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="h1000"):
        plan(device="h1000")
    with pytest.raises(ConfigError, match="sizes of 'nothing-7b'"):
        plan(TrainConfig(model="nothing-7b"))
    with pytest.raises(HookNameError):
        plan(TrainConfig(hooks=("blocks.2.nothing",)))


def test_the_page_holds_what_the_function_makes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in {"saes": sae_table(), "models": model_table()}.items():
        (found,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end -->", text, re.S)
        assert found.splitlines() == lines, (
            f"write the table '{name}' of docs/scaling.md anew from attlas.saes.scaling.table"
        )


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    argv = ["train", "--plan", "--json", "--gpu-memory", "0.1", "--workspace", str(workspace)]
    assert main(argv) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["basis"] == "computed"
    assert found["peak"] > found["limit"]
    assert "does not fit" in printed.err
    assert "next:" not in printed.err
    assert not workspace.exists()
