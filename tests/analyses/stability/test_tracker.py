"""The tracker in training loops: right numbers, nothing left behind."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attlas
from attlas.analyses.stability.layer import AttentionLayer, Reading
from attlas.analyses.stability.tracker import EntropyTracker
from attlas.errors import ConfigError
from attlas.interp import HookedModel

from .tracked import count_hooks, entropy_of, inputs_of, loss_of


@pytest.mark.parametrize("which", ["gpt2_mini", "tiny_llama", "vit_mini"])
def test_rows_equal_the_models_own_maps(which: str, request: pytest.FixtureRequest) -> None:
    model: HookedModel = request.getfixturevalue(which)
    hf, inputs = copy.deepcopy(model.hf).train(), inputs_of(model)
    with attlas.EntropyTracker(hf, every=3, n_sequences=3) as tracker:
        for _ in range(5):
            loss_of(hf, inputs).backward()
            tracker.step(loss=1.5)
    table = tracker.table().to_pandas()
    assert sorted(set(table.step)) == [0, 3]
    assert (table.loss == 1.5).all()
    first = table[table.step == 0].set_index(["layer", "head"])
    maps = model.capture(next(iter(inputs.values()))[:3], "*hook_pattern")
    for layer in range(model.cfg.n_layers):
        a = maps[f"blocks.{layer}.attn.hook_pattern"].double()
        ent = entropy_of(a)
        np.testing.assert_allclose(first.entropy[layer], ent.mean((0, 2)), atol=1e-4)
        quantile = np.quantile(ent.transpose(0, 1).flatten(1).numpy(), 0.25, axis=1, method="inverted_cdf")
        np.testing.assert_allclose(first.q25[layer], quantile, atol=0.0079)
        n = (a > 0).sum(-1) if not model.cfg.causal else torch.arange(1, 25).expand_as(ent)
        keep = n[0, 0] > 1
        np.testing.assert_allclose(
            first.normalized[layer], (ent / n.double().log())[:, :, keep].mean((0, 2)), atol=1e-4
        )
        np.testing.assert_allclose(first.max_weight[layer], a.amax(-1).mean((0, 2)), atol=1e-4)
        w_q = model.W_Q(layer).transpose(0, 1).flatten(1)
        np.testing.assert_allclose(first.sigma_q[layer], float(torch.linalg.matrix_norm(w_q.detach(), 2)), rtol=5e-3)
        w_o = model.W_O(layer).flatten(0, 1)
        np.testing.assert_allclose(first.sigma_o[layer], float(torch.linalg.matrix_norm(w_o.detach(), 2)), rtol=5e-3)
    assert (first.entropy >= first.lower_bound - 1e-6).all()
    assert (first.lower_bound >= first.weight_bound - 1e-6).all()
    assert (first.nonfinite == 0).all()


def test_no_hooks_between_checks_nor_after(gpt2_mini: HookedModel) -> None:
    hf, inputs = copy.deepcopy(gpt2_mini.hf).train(), inputs_of(gpt2_mini)
    with EntropyTracker(hf, every=3) as tracker:
        assert count_hooks(hf) == 4
        loss_of(hf, inputs)
        tracker.step()
        assert count_hooks(hf) == 0
        with pytest.raises(ConfigError, match="has an EntropyTracker already"):
            EntropyTracker(hf)
    assert count_hooks(hf) == 0
    tracker.close()
    EntropyTracker(hf).close()


def test_training_is_not_changed(gpt2_mini: HookedModel) -> None:
    """With dropout and σReparam on, weights after tracked steps equal those of untracked ones."""

    def run(tracked: bool) -> dict[str, Tensor]:
        hf = copy.deepcopy(gpt2_mini.hf).train()
        for module in hf.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        attlas.sigma_reparam(hf, init="preserve")
        optimizer = torch.optim.Adam(hf.parameters(), lr=1e-3)
        tracker = EntropyTracker(hf, every=1, optimizer=optimizer) if tracked else None
        torch.manual_seed(0)
        for _ in range(3):
            loss_of(hf, inputs_of(gpt2_mini)).backward()
            optimizer.step()
            optimizer.zero_grad()
        if tracker is not None:
            tracker.close()
            assert tracker.summary()["checks"] == 3
        return hf.state_dict()

    plain = run(False)
    for key, value in run(True).items():
        assert torch.equal(value, plain[key]), key


@pytest.mark.parametrize("how", ["outside", "in place", "blocks"])
def test_compiled_models(how: str, gpt2_mini: HookedModel) -> None:
    torch._dynamo.reset()
    hf: Any = copy.deepcopy(gpt2_mini.hf).train()
    called = hf
    if how == "outside":
        called = torch.compile(hf, backend="eager")
    elif how == "in place":
        hf.compile(backend="eager")
    else:
        for block in hf.transformer.h:
            block.compile(backend="eager")
    inputs = inputs_of(gpt2_mini)
    with EntropyTracker(called, every=2) as tracker:
        for _ in range(3):
            loss_of(called, inputs).backward()
            tracker.step()
    assert all(module.training for module in hf.modules())
    plain = copy.deepcopy(gpt2_mini.hf).train()
    with EntropyTracker(plain) as expected:
        loss_of(plain, inputs)
        expected.step()
    found = tracker.table().to_pandas()
    assert sorted(set(found.step)) == [0, 2]
    np.testing.assert_allclose(found.entropy[:24], expected.table().to_pandas().entropy, atol=1e-5)


def test_checkpointing_autocast_accumulation_and_evaluation(gpt2_mini: HookedModel) -> None:
    hf, inputs = copy.deepcopy(gpt2_mini.hf).train(), inputs_of(gpt2_mini)
    hf.gradient_checkpointing_enable()
    with EntropyTracker(hf, every=1, n_sequences=8) as tracker:
        hf.eval()
        loss_of(hf, {"input_ids": inputs["input_ids"][:, :7]})  # an evaluation in between is not measured
        hf.train()
        for _ in range(2):  # two micro-batches; the first counts
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(hf, inputs)
            loss.backward()
        tracker.step()
    table = tracker.table().to_pandas()
    assert (table.n_queries == 5 * 24).all()
    with EntropyTracker(copy.deepcopy(gpt2_mini.hf).train(), n_sequences=8) as exact:
        loss_of(exact.model, inputs)
        exact.step()
    np.testing.assert_allclose(table.entropy, exact.table().to_pandas().entropy, atol=0.05)  # bfloat16


def test_half_precision_logits_that_overflow() -> None:
    """Logits of 1.6e5 are infinite in float16; the tracker's are not."""
    q = torch.full((1, 1, 4, 16), 200.0, dtype=torch.float16)
    k = torch.full((1, 1, 4, 16), 200.0, dtype=torch.float16)

    class Half(nn.Module):
        def forward(self) -> Tensor:
            return q

    def adapter(model: nn.Module) -> Iterable[AttentionLayer]:
        return [AttentionLayer("half", model, 1, lambda *_: Reading(q, k))]

    model = Half().train()
    with EntropyTracker(model, every=1, adapter=adapter) as tracker:
        model()
        tracker.step()
    row = tracker.table().to_pandas()
    assert row.entropy[0] == pytest.approx(np.log([1, 2, 3, 4]).mean(), abs=1e-3)
    assert np.isnan(row.weight_bound[0])
