"""The fused training step against autograd on dense matrices and torch's Adam."""

import pytest
import torch

from attlas.errors import KernelError
from attlas.kernels import StepOptions, TopKStep

D, F, N = 6, 40, 16


def start(seed=0):
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(F, D, generator=g, dtype=torch.float64), dim=-1)
    return [W_dec.t().clone(), torch.zeros(F, dtype=torch.float64), W_dec, torch.zeros(D, dtype=torch.float64)]


def batch(i):
    return torch.randn(N, D, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64)


def dense_loss(params, x, options, dead):
    W_enc, b_enc, W_dec, b_dec = params
    pre = (x - b_dec) @ W_enc + b_enc
    top = pre.topk(options.k)
    x_hat = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu()) @ W_dec + b_dec
    loss = (x - x_hat).square().sum(-1).mean()
    aux = x.new_zeros(())
    if dead is not None:
        top = pre.masked_fill(~dead, -torch.inf).topk(options.k_aux)
        e_hat = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu()) @ W_dec
        aux = options.aux_weight * ((x - x_hat).detach() - e_hat).square().sum(-1).mean()
    return loss, aux


def train_dense(options, n_steps, dead=None):
    params = [p.clone().requires_grad_() for p in start()]
    adam = torch.optim.Adam(params, lr=options.lr, betas=options.betas, eps=options.eps)
    losses = []
    for i in range(n_steps):
        adam.zero_grad()
        loss, aux = dense_loss(params, batch(i), options, dead)
        (loss + aux).backward()
        if options.unit_norm:
            W, g = params[2].detach(), params[2].grad
            g -= (g * W).sum(-1, keepdim=True) * W
        adam.step()
        if options.unit_norm:
            params[2].data /= params[2].data.norm(dim=-1, keepdim=True)
        losses.append(float(loss.detach()))
    return [p.detach() for p in params], losses


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("aux", [True, False])
def test_hundred_steps_equal_dense_training(unit_norm, aux):
    options = StepOptions(k=4, lr=3e-3, unit_norm=unit_norm, k_aux=3)
    dead = torch.arange(F) % 5 == 0 if aux else None
    expected, losses = train_dense(options, 100, dead)
    fused = TopKStep(*start(), options)
    ours = [float(fused.step(batch(i), dead).loss) for i in range(100)]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(losses), atol=1e-7, rtol=1e-7)
    for mine, plain in zip((fused.W_enc, fused.b_enc, fused.W_dec, fused.b_dec), expected, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-6, rtol=1e-6)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("aux", [True, False])
def test_lazy_steps_equal_dense_training(aux):
    """Against autograd on dense matrices and torch's own Adam, with few features active at a step."""
    options = StepOptions(k=1, lr=3e-3, betas=(0.5, 0.9), k_aux=1, lazy=True)  # momentum fades within 57 steps
    dead = torch.arange(F) % 5 == 0 if aux else None
    expected, _ = train_dense(options, 150, dead)
    fused = TopKStep(*start(), options)
    for i in range(150):
        fused.step(batch(i), dead)
    for mine, plain in zip((fused.W_enc, fused.b_enc, fused.W_dec, fused.b_dec), expected, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-9, rtol=1e-9)


def test_training_goes_on_from_its_state():
    options = StepOptions(k=2, lr=3e-3, lazy=True)
    whole = TopKStep(*start(), options)
    for i in range(20):
        whole.step(batch(i))
    resumed = TopKStep(whole.W_enc, whole.b_enc, whole.W_dec, whole.b_dec, options)
    resumed.restore({name: tensor.clone() for name, tensor in whole.state().items()})
    for i in range(20, 30):
        assert torch.equal(whole.step(batch(i)).loss, resumed.step(batch(i)).loss)


def test_deterministic_and_float32():
    options = StepOptions(k=4)
    runs = []
    for _ in range(2):
        fused = TopKStep(*[p.float() for p in start()], options)
        for i in range(5):
            result = fused.step(batch(i).float())
        runs.append(fused.W_dec)
    assert torch.equal(*runs)
    assert int(result.fired.sum()) == int((result.values > 0).sum())
    torch.testing.assert_close(runs[0].norm(dim=-1), torch.ones(F))


def test_empty_batch_and_bad_arguments():
    fused = TopKStep(*start(), StepOptions(k=4))
    before = fused.W_dec.clone()
    assert float(fused.step(torch.zeros(0, D, dtype=torch.float64)).loss) == 0
    assert torch.equal(before, fused.W_dec)
    with pytest.raises(KernelError, match="shape"):
        fused.step(torch.zeros(2, D + 1, dtype=torch.float64))
    with pytest.raises(KernelError, match="k = 41"):
        TopKStep(*start(), StepOptions(k=41))
