"""The lower bound of attention entropy, against the entropies themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attlas.analyses.stability.bound import entropy_lower_bound, logit_bound, qk_norms, spectral_norm
from attlas.interp import HookedModel


def _entropy(logits: Tensor) -> Tensor:
    a = torch.softmax(logits.double(), dim=-1)
    return -torch.special.xlogy(a, a).sum(-1)


@given(st.lists(st.floats(-200, 200), min_size=2, max_size=40))
@settings(max_examples=300, deadline=None)
def test_bound_holds_for_any_logits(values: list[float]) -> None:
    u = torch.tensor(values, dtype=torch.float64)
    s = torch.linalg.vector_norm(u - u.mean())
    assert _entropy(u) >= entropy_lower_bound(s, len(values)) - 1e-9
    # The paper's larger norm gives a smaller bound.
    assert entropy_lower_bound(s, len(values)) >= entropy_lower_bound(torch.linalg.vector_norm(u), len(values)) - 1e-12


@given(st.floats(0, 60), st.integers(2, 200))
@settings(max_examples=100, deadline=None)
def test_bound_is_attained_by_one_logit_that_stands_out(peak: float, n: int) -> None:
    u = torch.zeros(n, dtype=torch.float64)
    u[0] = peak
    s = torch.linalg.vector_norm(u - u.mean())
    assert float(_entropy(u)) == pytest.approx(float(entropy_lower_bound(s, n)), abs=1e-9)


def test_bound_at_its_ends() -> None:
    assert float(entropy_lower_bound(0.0, 7)) == pytest.approx(np.log(7))
    assert float(entropy_lower_bound(1e6, 7)) == 0
    assert float(entropy_lower_bound(float("inf"), 7)) == 0
    assert float(entropy_lower_bound(0.0, 1)) == 0
    s = torch.linspace(0, 50, 200)
    assert (entropy_lower_bound(s, 16).diff() < 0).all()


@pytest.mark.parametrize("which", ["gpt2_mini", "tiny_llama", "vit_mini"])
def test_bound_holds_on_every_row_of_the_embedded_models(which: str, request: pytest.FixtureRequest) -> None:
    """Both bounds, on scores the hooks give, in float64."""
    model: HookedModel = request.getfixturevalue(which)
    cfg = model.cfg
    if cfg.family == "vit":
        inputs = request.getfixturevalue("glyphs").pixels[:16]
    elif which == "gpt2_mini":
        inputs = request.getfixturevalue("val_tokens").tokens
    else:
        inputs = torch.randint(1, cfg.d_vocab, (8, 48))
    cache = model.capture(inputs, ["*hook_attn_scores", "*.ln1.hook_normalized"])
    n_rows = 0
    for layer in range(cfg.n_layers):
        scores = cache[f"blocks.{layer}.attn.hook_attn_scores"].double()
        open_ = scores > -torch.inf
        n = open_.sum(-1)
        finite = scores.masked_fill(~open_, 0)
        centred = (finite - finite.sum(-1, keepdim=True) / n.unsqueeze(-1)).masked_fill(~open_, 0)
        entropy = _entropy(scores)
        row = entropy_lower_bound(torch.linalg.vector_norm(centred, dim=-1), n)
        assert (entropy >= row - 1e-9).all()
        rotary = cfg.positional == "rotary"
        norms = qk_norms(model.W_Q(layer), model.W_K(layer), model.b_Q(layer), model.b_K(layer), rotary)
        x = cache[f"blocks.{layer}.ln1.hook_normalized"]
        s = logit_bound(norms, x, model.layers[layer].scale)
        raw = torch.linalg.vector_norm(finite, dim=-1)
        assert (raw <= s[..., None] * (1 + 1e-5)).all()  # the paper's s does bound the logits
        assert (row >= entropy_lower_bound(s[..., None], n) - 1e-12).all()
        n_rows += entropy.numel()
    assert n_rows > 1000


def test_norms_equal_svd() -> None:
    w_q, w_k = torch.randn(6, 20, 5), torch.randn(2, 20, 5)
    b_q, b_k = torch.randn(6, 5), torch.randn(2, 5)
    found = qk_norms(w_q, w_k, b_q, b_k, rotary=False)
    for head in range(6):
        q = torch.cat([w_q[head], b_q[head][None]]).double()
        k = torch.cat([w_k[head // 3], b_k[head // 3][None]]).double()
        assert float(found[head]) == pytest.approx(float(torch.linalg.matrix_norm(k @ q.T, 2)), rel=1e-9)
    product = qk_norms(w_q, w_k, None, None, rotary=True)
    expected = torch.linalg.matrix_norm(w_q.double(), 2) * torch.linalg.matrix_norm(w_k.double(), 2).repeat_interleave(
        3
    )
    torch.testing.assert_close(product, expected)
    assert (product >= qk_norms(w_q, w_k, None, None, rotary=False) - 1e-12).all()
    weight = torch.randn(30, 12)
    sigma, vector = spectral_norm(weight)
    assert float(sigma) == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=1e-4)
    again, _ = spectral_norm(weight, vector, n_iterations=1)
    assert float(again) == pytest.approx(float(sigma), rel=1e-5)
