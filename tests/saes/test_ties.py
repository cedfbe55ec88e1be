"""Equal activations: the lower feature index wins in every place that chooses, against a float64 brute force.

Inputs and weights are small multiples of 1/4, so that products are exact in float32 and ties are everywhere.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attlas.kernels import StepOptions, TopKStep, batch_topk_encode, topk_encode, topk_rows
from attlas.saes import ARCHITECTURES, SAE, SAEConfig
from attlas.saes.architectures import create_sae
from attlas.saes.base import StepContext

ARCHS = sorted(ARCHITECTURES)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 200), st.integers(0, 2**31))


def quarters(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(-4, 5, shape, generator=generator) / 4


def quantised_sae(arch: str, d_in: int, d_sae: int, k: int, seed: int) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    sae = create_sae(SAEConfig(d_in=d_in, d_sae=d_sae, arch=arch, k=k))
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if name not in ("r_mag", "threshold"):
                tensor.copy_(quarters(generator, *tensor.shape))
            elif name == "threshold":
                tensor.fill_(0.25)
    return sae


def lowest(pre: Tensor, k: int) -> Tensor:
    """Indices of the k largest, by Python's sort on (value descending, index ascending), [N, k]."""
    rows = [sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k] for row in pre.double().tolist()]
    return torch.tensor(rows, dtype=torch.int64).view(len(pre), k)


def exact_pre(sae: SAE, x: Tensor) -> Tensor:
    return (x.double() - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, data=st.data())
def test_topk_encode_sparse_dense_and_forward_choose_the_same(
    sizes: tuple[int, int, int, int], data: st.DataObject
) -> None:
    n, d_in, d_sae, seed = sizes
    k = data.draw(st.integers(1, d_sae))
    sae = quantised_sae("topk", d_in, d_sae, k, seed)
    x = quarters(torch.Generator().manual_seed(seed + 1), n, d_in)
    pre = exact_pre(sae, x)
    chosen = lowest(pre, k)
    f = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen).relu())
    values, indices = sae.encode_sparse(x)
    assert torch.equal(indices, chosen)
    assert torch.equal(sae.encode(x).double(), f)
    assert torch.equal(sae.activate(sae.pre_activations(x)).double(), f)
    x_hat = (f @ sae.W_dec.double() + sae.b_dec.double()).float()
    torch.testing.assert_close(sae(x), x_hat)
    torch.testing.assert_close(sae.decode_sparse(values, indices), x_hat)


@pytest.mark.parametrize("arch", ARCHS)
@settings(max_examples=15, deadline=None)
@given(sizes=sizes)
def test_encode_sparse_orders_equal_values_by_index(arch: str, sizes: tuple[int, int, int, int]) -> None:
    n, d_in, d_sae, seed = sizes
    sae = quantised_sae(arch, d_in, d_sae, max(1, d_sae // 3), seed)
    x = quarters(torch.Generator().manual_seed(seed + 1), n, d_in)
    k = min(3, d_sae, sae.cfg.k)
    f = sae.encode(x)
    values, indices = sae.encode_sparse(x, k)
    ranked = exact_pre(sae, x) if arch == "topk" else f
    assert torch.equal(indices, lowest(ranked, k))
    assert torch.equal(values, f.gather(1, indices))


@settings(max_examples=30, deadline=None)
@given(sizes=sizes, data=st.data())
def test_batch_topk_takes_the_lower_row_then_feature(sizes: tuple[int, int, int, int], data: st.DataObject) -> None:
    n, d_in, d_sae, seed = sizes
    k = data.draw(st.integers(1, d_sae))
    sae = quantised_sae("batchtopk", d_in, d_sae, k, seed)
    x = quarters(torch.Generator().manual_seed(seed + 1), n, d_in)
    positive = exact_pre(sae, x).relu().flatten()
    chosen = lowest(positive[None], n * k)[0]
    expected = torch.zeros_like(positive).scatter(0, chosen, positive[chosen]).view(n, d_sae)
    assert torch.equal(sae.activate_batch(sae.pre_activations(x)).double(), expected)
    values, indices, _ = batch_topk_encode(x, sae.W_enc, sae.b_enc, k, b_dec=sae.b_dec)
    assert torch.equal(torch.zeros(n, d_sae).scatter(1, indices, values).double(), expected)


@pytest.mark.parametrize("dead", [False, True])
def test_a_training_step_with_ties_equals_the_plain_formula(dead: bool) -> None:
    """Fused and autograd alike: gradients reach the features of lower index, and no others."""
    k, n_dead = 3, 8
    sae = quantised_sae("topk", 4, 40, k, seed=3)
    x = quarters(torch.Generator().manual_seed(4), 30, 4)
    dead_F = torch.arange(40) >= 40 - n_dead
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    chosen = lowest(pre, k)
    f = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen).relu())
    x_hat = f @ sae.W_dec + sae.b_dec
    expected = (x - x_hat).pow(2).sum() / len(x)
    if dead:
        among = lowest(pre[:, dead_F], 2)
        g = torch.zeros(30, n_dead).scatter(1, among, pre[:, dead_F].gather(1, among).relu())
        expected = expected + 0.5 * ((x - x_hat).detach() - g @ sae.W_dec[dead_F]).pow(2).sum() / len(x)
    wanted = torch.autograd.grad(expected, [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec])

    sae.cfg = SAEConfig(d_in=4, d_sae=40, k=k, aux_coefficient=0.5, k_aux=2)
    terms = sae.loss(x, StepContext(dead_F=dead_F if dead else None))
    terms.total.backward()
    torch.testing.assert_close(terms.total, expected)
    for name, gradient in zip(("W_enc", "b_enc", "W_dec", "b_dec"), wanted, strict=True):
        torch.testing.assert_close(getattr(sae, name).grad, gradient)

    options = StepOptions(k=k, k_aux=2, aux_weight=0.5, unit_norm=False)
    fused = TopKStep(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, options)
    result = fused.step(x, dead_F if dead else None)
    assert torch.equal(result.indices, chosen)
    torch.testing.assert_close(result.loss + result.aux_loss, expected.detach())
    moments = fused.state()
    torch.testing.assert_close(moments["exp_avg/encoder"].T, 0.1 * wanted[0])
    torch.testing.assert_close(moments["exp_avg/W_dec"], 0.1 * wanted[2])


@pytest.mark.parametrize(("F", "k"), [(8192, 20), (20_000, 5), (20_000, 9_000)])
def test_ties_over_blocks_and_column_tiles(F: int, k: int) -> None:
    """Wide enough for both stages of the selection and for merging tiles; values in steps of 1/4."""
    generator = torch.Generator().manual_seed(F + k)
    x, W, b = quarters(generator, 9, 3), quarters(generator, 3, F), quarters(generator, F)
    pre = x @ W + b
    assert torch.equal(topk_encode(x, W, b, k, relu=False)[1], lowest(pre, k))
    assert torch.equal(topk_rows(pre, k)[1], lowest(pre, k))
