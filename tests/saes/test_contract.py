"""What every architecture promises, checked against formulas written out here and against autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attlas.errors import ConfigError
from attlas.saes import ARCHITECTURES, SAE, SAEConfig
from attlas.saes.architectures import create_sae
from attlas.saes.architectures.auxk import MU
from attlas.saes.base import StepContext

ARCHS = sorted(ARCHITECTURES)


def random_sae(arch: str, d_in: int, d_sae: int, k: int, seed: int = 0, dtype: str = "float32", **more: object) -> SAE:
    """An SAE with random weights of a plausible size; thresholds differ between features where they are learned."""
    generator = torch.Generator().manual_seed(seed)
    sae = create_sae(SAEConfig(d_in=d_in, d_sae=d_sae, arch=arch, k=k, dtype=dtype, **more))
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            tensor.copy_(noise.abs() * 0.3 if name == "threshold" else noise * 0.5)
        if arch in ("batchtopk", "matryoshka"):
            sae.threshold.fill_(0.3)
        sae.after_step()
    return sae


def plain_encode(sae: SAE, x: Tensor) -> Tensor:
    """Each architecture's encoder, straight from its paper, with no code of Attlas."""
    w = dict(sae.state_dict())
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    if sae.cfg.arch == "standard":
        return pre.clamp_min(0)
    if sae.cfg.arch == "gated":
        magnitude = (x - w["b_dec"]) @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]
        return torch.where(pre > 0, magnitude.clamp_min(0), 0)
    if sae.cfg.arch == "topk":
        cut = pre.sort(dim=-1, descending=True).values[..., sae.cfg.k - 1 : sae.cfg.k]
        return torch.where(pre >= cut, pre, 0).clamp_min(0)
    return torch.where(pre > w["threshold"], pre, 0).clamp_min(0)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 24), st.integers(0, 3))


@pytest.mark.parametrize("arch", ARCHS)
@settings(max_examples=25, deadline=None)
@given(sizes=shapes, data=st.data())
def test_encode_decode_and_sparse_agree(arch: str, sizes: tuple[int, int, int, int], data: st.DataObject) -> None:
    n, d_in, d_sae, seed = sizes
    k = data.draw(st.integers(1, d_sae))
    sae = random_sae(arch, d_in, d_sae, k, seed)
    x = torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))
    f = sae.encode(x)
    assert f.shape == (n, d_sae)
    assert (f >= 0).all()
    torch.testing.assert_close(f, plain_encode(sae, x), atol=1e-5, rtol=1e-4)
    if arch == "topk":
        assert ((f > 0).sum(-1) <= k).all()

    values, indices = sae.encode_sparse(x)
    assert indices.dtype == torch.int64
    assert (values[:, :-1] >= values[:, 1:]).all()
    assert all(len(set(row.tolist())) == len(row) for row in indices)
    torch.testing.assert_close(torch.zeros_like(f).scatter(-1, indices, values), f, atol=1e-5, rtol=1e-4)

    x_hat = f @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(sae.decode(f), x_hat)
    torch.testing.assert_close(sae.decode_sparse(values, indices), x_hat, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae(x), x_hat, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_batch_shapes_and_heads(arch: str) -> None:
    sae = random_sae(arch, 12, 20, 4, n_heads=3, d_head=4, hook_name="blocks.0.attn.hook_z")
    z = torch.randn(2, 5, 3, 4)
    assert sae(z).shape == z.shape
    assert sae.encode(z).shape == (2, 5, 20)
    torch.testing.assert_close(sae(z).flatten(2), sae(z.flatten(2)))
    values, indices = sae.encode_sparse(z)
    assert values.shape == indices.shape
    assert values.shape[:2] == (2, 5)
    assert sae(z.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("arch", ARCHS)
def test_wrong_width_names_both(arch: str) -> None:
    sae = random_sae(arch, 12, 20, 4, n_heads=3, d_head=4, hook_name="blocks.0.attn.hook_z", model_name="m")
    with pytest.raises(ConfigError, match=r"d_in=12 and the activations have 16.*blocks\.0\.attn\.hook_z.*'m'"):
        sae(torch.randn(2, 5, 4, 4))


@pytest.mark.parametrize("arch", ARCHS)
def test_scale_folds_exactly(arch: str) -> None:
    """An SAE of s·x, folded, reconstructs x/1 as the unfolded reconstructs s·x, divided by s; features too."""
    sae = random_sae(arch, 8, 16, 3, seed=2, dtype="float64")
    x, scale = torch.randn(50, 8, dtype=torch.float64), 7.5
    f, x_hat = sae.encode(x * scale), sae(x * scale)
    sae.fold_scale(scale)
    torch.testing.assert_close(sae.encode(x), f / scale)
    torch.testing.assert_close(sae(x), x_hat / scale)


@pytest.mark.parametrize("arch", ARCHS)
def test_decoder_rows_keep_norm_one(arch: str) -> None:
    sae = random_sae(arch, 8, 16, 3)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.1)
    for _ in range(3):
        sae.loss(torch.randn(32, 8), StepContext()).total.backward()
        sae.before_step()
        if sae.unit_norm_decoder:
            along_row = (sae.W_dec.grad * sae.W_dec).sum(-1)
            torch.testing.assert_close(along_row, torch.zeros(16), atol=1e-3, rtol=0)
        optimizer.step()
        sae.after_step()
        optimizer.zero_grad()
    norms = sae.W_dec.norm(dim=-1)
    assert sae.unit_norm_decoder == bool(torch.allclose(norms, torch.ones(16), atol=1e-5))


def plain_loss(sae: SAE, x: Tensor, dead: Tensor | None) -> Tensor:
    """Each architecture's loss from its docstring's formula, dense and differentiable by autograd alone."""
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    lam, k, arch = sae.cfg.sparsity, sae.cfg.k, sae.cfg.arch

    def mse(f: Tensor, rows: slice = slice(None)) -> Tensor:
        return ((x - (f[:, rows] @ sae.W_dec[rows] + sae.b_dec)) ** 2).sum() / len(x)

    if arch == "standard":
        f = pre.relu()
        return mse(f) + lam * (f * sae.W_dec.norm(dim=1)).sum() / len(x)
    if arch == "gated":
        f = (pre > 0) * ((x - sae.b_dec) @ (sae.W_enc * sae.r_mag.exp()) + sae.b_mag).relu()
        frozen = ((x - (pre.relu() @ sae.W_dec.detach() + sae.b_dec.detach())) ** 2).sum() / len(x)
        silent = 0.0 if dead is None else (-pre).relu()[:, dead].sum() / len(x)
        return mse(f) + lam * pre.relu().sum() / len(x) + frozen + sae.cfg.aux_coefficient * MU * silent
    if arch == "topk":
        cut = pre.detach().sort(dim=-1, descending=True).values[:, k - 1 : k]
    else:
        cut = pre.detach().relu().flatten().sort(descending=True).values[k * len(x) - 1]
    f = pre.relu() * (pre >= cut)
    widths = sae.widths if arch == "matryoshka" else (sae.cfg.d_sae,)
    total = sum((mse(f, slice(0, width)) for width in widths), x.new_zeros(())) / len(widths)
    return total + plain_auxk(sae, x, pre, f, dead)


def plain_auxk(sae: SAE, x: Tensor, pre: Tensor, f: Tensor, dead: Tensor | None) -> Tensor:
    """The dead features' attempt at the error that the others leave."""
    if dead is None or not dead.any():
        return x.new_zeros(())
    error = (x - (f @ sae.W_dec + sae.b_dec)).detach()
    full = sae.cfg.d_in // 2
    count = min(full, int(dead.sum()))
    masked = pre.detach().masked_fill(~dead, float("-inf"))
    limit = masked.sort(dim=-1, descending=True).values[:, count - 1 : count]
    g = torch.where(masked >= limit, pre, 0).relu()
    aux = ((error - g @ sae.W_dec) ** 2).sum() / len(x)
    return sae.cfg.aux_coefficient * min(1.0, int(dead.sum()) / full) * aux


@pytest.mark.parametrize("with_dead", [False, True])
@pytest.mark.parametrize("arch", [a for a in ARCHS if a != "jumprelu"])
def test_loss_and_gradients_equal_the_plain_formula(arch: str, with_dead: bool) -> None:
    sae = random_sae(arch, 10, 24, 4, seed=5, dtype="float64", sparsity=0.7)
    x = torch.randn(40, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dead = torch.arange(24) % 3 == 0 if with_dead else None
    terms = sae.loss(x, StepContext(dead_F=dead))
    ours = torch.autograd.grad(terms.total, list(sae.parameters()), allow_unused=True)
    expected = plain_loss(sae, x, dead)
    theirs = torch.autograd.grad(expected, list(sae.parameters()), allow_unused=True)
    torch.testing.assert_close(terms.total, expected)
    for (name, _), a, b in zip(sae.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}", atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("with_dead", [False, True])
def test_jumprelu_straight_through_gradients(with_dead: bool) -> None:
    """θ's gradient is the paper's pseudo-derivative; every other gradient is autograd's with the mask held fixed."""
    eps, lam = 0.4, 0.7
    sae = random_sae("jumprelu", 10, 24, 4, seed=5, dtype="float64", sparsity=lam, bandwidth=eps)
    x = torch.randn(40, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dead = torch.arange(24) % 3 == 0 if with_dead else None
    terms = sae.loss(x, StepContext(dead_F=dead))
    terms.total.backward()

    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    mask = ((pre > sae.threshold) & (pre > 0)).double().detach()
    f = pre * mask
    f.retain_grad()
    mse = ((x - (f @ sae.W_dec + sae.b_dec)) ** 2).sum() / len(x)
    aux = plain_auxk(sae, x, pre, f, dead)
    assert (float(aux.detach()) > 0) == with_dead
    others = [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec]
    expected = torch.autograd.grad(mse + aux, [*others, f])
    for parameter, gradient in zip(others, expected, strict=False):
        torch.testing.assert_close(parameter.grad, gradient)
    near = ((pre - sae.threshold).abs() < eps / 2).double()
    theta = (-(sae.threshold / eps) * near * expected[-1]).sum(0) - (lam / eps * near / len(x)).sum(0)
    torch.testing.assert_close(sae.threshold.grad, theta)
    torch.testing.assert_close(terms.total, mse + lam * mask.sum(-1).mean() + aux)


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
def test_batch_budget_and_threshold(arch: str) -> None:
    sae = random_sae(arch, 10, 24, 3)
    sae.threshold.zero_()
    x = torch.randn(50, 10)
    pre = sae.pre_activations(x)
    f = sae.activate_batch(pre)
    assert int((f > 0).sum()) == 3 * 50
    assert f[f > 0].min() >= pre[f == 0].max()
    terms = sae.loss(x, StepContext())
    assert float(terms.l0) == 3.0
    assert int(terms.fired_F.sum()) == 150
    torch.testing.assert_close(sae.threshold, torch.full((24,), float(f.detach()[f > 0].min())))
    before = sae.threshold[0].clone()
    smallest = sae.activate_batch(sae.pre_activations(3 * x))
    sae.loss(3 * x, StepContext())
    expected = before + 0.05 * (smallest[smallest > 0].min() - before)
    torch.testing.assert_close(sae.threshold[0], expected)


def test_matryoshka_prefixes() -> None:
    assert random_sae("matryoshka", 4, 32, 2).widths == (2, 4, 8, 16, 32)
    assert random_sae("matryoshka", 4, 3, 2).widths == (1, 3)
    with pytest.raises(ConfigError, match="widths"):
        SAEConfig(d_in=4, d_sae=8, k=2, arch="matryoshka", widths=(4, 4, 8))


def test_penalty_scale_scales_the_penalty_only() -> None:
    for arch in ("standard", "gated", "jumprelu"):
        sae = random_sae(arch, 8, 16, 3)
        x = torch.randn(30, 8)
        cold, half, warm = (sae.loss(x, StepContext(penalty_scale=w)).total.item() for w in (0.0, 0.5, 1.0))
        assert half == pytest.approx((cold + warm) / 2, rel=1e-5)
        assert warm > cold


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k": 17}, "k=17 must be between 1 and d_sae=16"),
        ({"k": 0}, "k=0"),
        ({"d_sae": 0}, "d_sae=0"),
        ({"d_in": 0}, "d_in=0"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"normalisation": "odd"}, "'odd' is unknown"),
        ({"n_heads": 3, "d_head": 5}, "3 heads of 5 do not make d_in=8"),
    ],
)
def test_bad_sizes_are_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        SAEConfig(**{"d_in": 8, "d_sae": 16, "k": 4, **change})


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="'relu6' is unknown; use one of standard"):
        create_sae(SAEConfig(d_in=8, d_sae=16, k=4, arch="relu6"))


@pytest.mark.parametrize("arch", ARCHS)
def test_hash_follows_the_weights(arch: str) -> None:
    one, same, other = (random_sae(arch, 8, 16, 3, seed=s) for s in (0, 0, 1))
    assert one.hash == same.hash != other.hash
    assert len(one.hash) == 16
