"""σReparam against the SVD, float64 autograd, and stock transformers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import GPT2LMHeadModel

import attlas
from attlas.analyses.stability.reparam import SigmaReparam, hold_power_iteration, merge_sigma, sigma_reparam
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel


@pytest.fixture
def gpt2(gpt2_mini: HookedModel) -> GPT2LMHeadModel:
    return copy.deepcopy(gpt2_mini.hf)


def _tokens(n: int = 2, length: int = 24) -> Tensor:
    return torch.randint(1, 90, (n, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("which", ["gpt2_mini", "tiny_llama", "vit_mini"])
def test_preserve_changes_nothing_and_merge_gives_the_stock_model(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = copy.deepcopy(request.getfixturevalue(which).hf).eval()
    inputs = {"pixel_values": torch.randn(2, 1, 32, 32)} if which == "vit_mini" else {"input_ids": _tokens()}
    keys, before = list(model.state_dict()), model(**inputs).logits
    reparam = attlas.sigma_reparam(model, init="preserve")
    n_layers = len(request.getfixturevalue(which).layers)
    assert len(reparam.names) == n_layers * {"gpt2_mini": 4, "tiny_llama": 7, "vit_mini": 6}[which]
    torch.testing.assert_close(model(**inputs).logits, before, atol=1e-5, rtol=0)
    assert any(key.endswith(".u") for key in model.state_dict())
    model.train()
    with torch.no_grad():
        for gamma in reparam.gammas().values():
            gamma *= 0.9
        model(**inputs)
    model.eval()
    changed = model(**inputs).logits
    assert (changed - before).abs().max() > 1e-3
    reparam.merge()
    torch.testing.assert_close(model(**inputs).logits, changed, atol=1e-5, rtol=0)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path / "merged")
    again = type(model).from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    if which != "gpt2_mini":  # its own file format is float16
        torch.testing.assert_close(again(**inputs).logits, changed, atol=1e-5, rtol=0)


def test_sigma_is_the_svds_for_each_of_the_three_blocks(gpt2: GPT2LMHeadModel) -> None:
    reparam = sigma_reparam(gpt2)
    gpt2.train()
    for _ in range(60):
        gpt2(_tokens(1, 4))
    for name, sigma in reparam.sigmas().items():
        weight = gpt2.get_submodule(name).parametrizations.weight.original
        blocks = weight.chunk(3, dim=1) if name.endswith("c_attn") else [weight]
        assert sigma.shape == (len(blocks),)
        for found, block in zip(sigma, blocks, strict=True):
            assert float(found) == pytest.approx(float(torch.linalg.matrix_norm(block.detach(), 2)), rel=2e-3)
        for block in gpt2.get_submodule(name).weight.chunk(len(blocks), dim=1):
            assert float(torch.linalg.matrix_norm(block, 2)) == pytest.approx(1, rel=2e-3)  # γ = 1


@pytest.mark.parametrize(("out_dim", "n_blocks"), [(0, 1), (1, 1), (1, 3), (0, 3)])
def test_gradient_equals_float64_autograd_through_the_svd(out_dim: int, n_blocks: int) -> None:
    shape = (30, 12) if out_dim == 0 else (12, 30)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    part = SigmaReparam(weight.detach(), out_dim, n_blocks).double()
    with torch.no_grad():
        for _ in range(1500):
            part(weight)
        part.gamma.copy_(torch.rand(n_blocks) + 0.5)
    part.eval()
    target = torch.randn(shape, dtype=torch.float64)
    (part(weight) * target).sum().backward()
    found, found_gamma = weight.grad.clone(), part.gamma.grad.clone()
    weight.grad = None
    gamma = part.gamma.detach().clone().requires_grad_()
    pieces = weight.chunk(n_blocks, dim=out_dim)
    exact = torch.cat([g * w / torch.linalg.svdvals(w)[0] for g, w in zip(gamma, pieces, strict=True)], dim=out_dim)
    (exact * target).sum().backward()
    torch.testing.assert_close(found, weight.grad, atol=2e-6, rtol=1e-5)  # σ is float32 inside
    torch.testing.assert_close(found_gamma.double(), gamma.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (24, 96), (600, 520)])
def test_preserve_stays_the_same_function_over_training_forwards_and_merge(shape: tuple[int, int]) -> None:
    layer = nn.Linear(shape[1], shape[0])
    x = torch.randn(16, shape[1])
    before = layer(x).detach()
    reparam = sigma_reparam(layer, init="preserve")
    layer.train()
    for _ in range(20):  # no optimiser step in between: nothing may move
        torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=0)
    exact = torch.linalg.matrix_norm(layer.weight.detach().double(), 2)
    torch.testing.assert_close(reparam.sigmas()[""].double().squeeze(), exact, atol=0, rtol=1e-6)
    reparam.merge()
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=0)


def test_weights_without_a_norm_are_refused() -> None:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    with pytest.raises(ConfigError, match="all-zero"):
        sigma_reparam(layer)
    nn.init.constant_(layer.weight, float("nan"))
    with pytest.raises(ConfigError, match="NaN"):
        sigma_reparam(layer)


def test_iteration_runs_in_training_forward_only_once_a_step() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    sigma_reparam(layer)
    part = layer[0].parametrizations.weight[0]

    def state() -> Tensor:
        return part.v.clone()

    x, start = torch.randn(3, 8), state()
    layer.eval()
    layer(x)
    assert torch.equal(state(), start)
    layer.train()
    with hold_power_iteration():
        layer(x)
    assert torch.equal(state(), start)
    layer(x)
    moved = state()
    assert not torch.equal(moved, start)
    # Gradient checkpointing runs the layer again in backward: the σ of the first time must hold.
    for reentrant in (False, True):
        x = torch.randn(3, 8, requires_grad=True)
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
        after_forward = state()
        y.sum().backward()
        assert torch.equal(state(), after_forward)


def test_autocast_state_dict_and_deepcopy(gpt2: GPT2LMHeadModel) -> None:
    reparam = sigma_reparam(gpt2, init="preserve")
    gpt2.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = gpt2(_tokens(), labels=_tokens()).loss
    loss.backward()
    assert all(torch.isfinite(g.grad).all() for g in reparam.gammas().values())
    part = gpt2.transformer.h[0].attn.c_attn.parametrizations.weight[0]
    assert part.u.dtype == torch.float32
    fresh = GPT2LMHeadModel(gpt2.config)
    sigma_reparam(fresh)
    fresh.load_state_dict(gpt2.state_dict())
    gpt2.eval(), fresh.eval()
    # Equal weights at other addresses take other vector paths: a few float32 roundings of logits of about 10.
    torch.testing.assert_close(fresh(_tokens()).logits, gpt2(_tokens()).logits, rtol=1e-4, atol=1e-4)
    merge_sigma(copy.deepcopy(gpt2))


def test_compile_gives_the_same_training_steps() -> None:
    def run(compiled: bool) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        sigma_reparam(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        called = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        x, y = torch.randn(32, 8), torch.randn(32, 4)
        losses = []
        for _ in range(5):
            loss = nn.functional.mse_loss(called(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert run(compiled=True) == pytest.approx(run(compiled=False), rel=1e-5)


def test_multihead_attention() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    before = layer(x)
    reparam = sigma_reparam(layer, init="preserve")
    assert set(reparam.names) == {"self_attn", "self_attn.out_proj", "linear1", "linear2"}
    assert reparam.gammas()["self_attn"].shape == (3,)
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=0)
    reparam.merge()
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=0)


def test_wrapped_models_open_with_effective_weights(gpt2: GPT2LMHeadModel) -> None:
    sigma_reparam(gpt2, init="preserve")
    wrapped = attlas.load_model(gpt2.eval())
    stock = attlas.load_model("gpt2-mini", device="cpu")
    torch.testing.assert_close(wrapped.W_O(1), stock.W_O(1), atol=1e-5, rtol=0)  # square: a wrong transpose would show
    torch.testing.assert_close(wrapped.W_Q(1), stock.W_Q(1), atol=1e-5, rtol=0)


def test_refusals(gpt2: GPT2LMHeadModel, tiny_llama: HookedModel) -> None:
    with pytest.raises(ConfigError, match=r"lm_head.weight' is tied to 'transformer.wte.weight'"):
        sigma_reparam(gpt2, include="*")
    assert not parametrize.is_parametrized(gpt2.transformer.h[0].attn.c_attn)  # refused before anything was changed
    with pytest.raises(ConfigError, match="matches no linear layer"):
        sigma_reparam(gpt2, include="encoder.*")
    with pytest.raises(ConfigError, match="init 'two'"):
        sigma_reparam(gpt2, init="two")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=r"before torch.compile"):
        sigma_reparam(torch.compile(gpt2))
    sigma_reparam(gpt2, include="*.c_attn")
    with pytest.raises(ConfigError, match="already"):
        sigma_reparam(gpt2, include="*.c_attn")
    zero = nn.Linear(4, 4)
    nn.init.zeros_(zero.weight)
    with pytest.raises(ConfigError, match="all-zero"):
        sigma_reparam(nn.Sequential(zero))
    chosen = sigma_reparam(copy.deepcopy(tiny_llama.hf), include=lambda name, _: name.endswith(("q_proj", "k_proj")))
    assert len(chosen.names) == 6


def test_ddp_keeps_ranks_equal(tmp_path: Path) -> None:
    """One process stands for a group of one: buffers are broadcast in forward, and the hooks of DDP see γ."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
        reparam = sigma_reparam(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(3):
            wrapped(torch.randn(4, 6)).sum().backward()
        assert all(g.grad is not None for g in reparam.gammas().values())
    finally:
        torch.distributed.destroy_process_group()
