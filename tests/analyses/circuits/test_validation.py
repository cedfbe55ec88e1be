"""Faithfulness against runs edited by hand, and at its two ends: the whole model and nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attlas.analyses.circuits.graph import CircuitGraph
from attlas.analyses.circuits.nodes import Node
from attlas.analyses.circuits.tracing import LogitTarget, TraceConfig, trace
from attlas.analyses.circuits.validation import FaithfulnessConfig, _Ablation, faithfulness, recovered
from attlas.analyses.tasks.catalog import make_task
from attlas.analyses.tasks.task import Task, TaskConfig
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel


def _graph(model: HookedModel, task: Task, nodes: list[Node], saes: dict[int, str] | None = None) -> CircuitGraph:
    text = tuple("x" * task.tokens.shape[1])
    root = Node("logits", "logits", model.cfg.n_layers, task.tokens.shape[1] - 1)
    return CircuitGraph("logits", (root, *nodes), (), tuple(task.tokens[0].tolist()), text, model.ref, saes or {})


def _heads(model: HookedModel, length: int) -> list[Node]:
    cfg = model.cfg
    return [
        Node(f"head {layer}.{head} @{p}", "head", layer, p, head)
        for layer in range(cfg.n_layers)
        for head in range(cfg.n_heads)
        for p in range(length)
    ]


@pytest.fixture(params=["gpt2_mini", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> HookedModel:
    return request.getfixturevalue(request.param)


def test_all_heads_are_the_model_and_none_are_nothing(model: HookedModel, random_task: Any) -> None:
    task = random_task()
    everything = _graph(model, task, _heads(model, task.tokens.shape[1]))
    result = faithfulness(model, task, everything, FaithfulnessConfig(n_random=1))
    assert result.recovered("circuit")[0] == pytest.approx(1)
    assert result.recovered("without circuit")[0] == pytest.approx(0, abs=1e-6)
    direct = task.metric_fn()(model.hf(input_ids=task.tokens).logits).detach().double().numpy()
    np.testing.assert_allclose(result.metrics["model"], direct, atol=1e-5)


def test_one_head_left_out_equals_a_run_edited_by_hand(model: HookedModel, random_task: Any) -> None:
    task, position, cfg = random_task(), 5, model.cfg
    nodes = [n for n in _heads(model, task.tokens.shape[1]) if (n.layer, n.head, n.position) != (1, 2, position)]
    hf = model.hf
    module = hf.transformer.h[1].attn.c_proj if hasattr(hf, "transformer") else hf.model.layers[1].self_attn.o_proj
    for mode in ("corrupted", "mean", "zero"):
        result = faithfulness(model, task, _graph(model, task, nodes), FaithfulnessConfig(mode=mode, n_random=0))
        seen: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0].detach()))
        for tokens in (task.tokens, task.corrupted):
            hf(input_ids=tokens)
        handle.remove()
        z, other = (x.unflatten(-1, (cfg.n_heads, cfg.d_head)).clone() for x in seen)
        value = other[:, position, 2]
        z[:, position, 2] = {"corrupted": value, "mean": value.mean(0), "zero": value * 0}[mode]
        new = z.flatten(-2)
        handle = module.register_forward_pre_hook(lambda _m, args, new=new: (new, *args[1:]))
        expected = task.metric_fn()(hf(input_ids=task.tokens).logits).detach().double().numpy()
        handle.remove()
        np.testing.assert_allclose(result.metrics["circuit"], expected, atol=2e-5)
        assert result.n_units["circuit"] == len(nodes)


@torch.no_grad()
def test_features_and_error_are_units(gpt2_mini: HookedModel, random_task: Any, random_sae: Any) -> None:
    """All heads and features kept but not the error: the layer's z with the corrupted prompt's error instead."""
    model, task, sae, hook = gpt2_mini, random_task(), random_sae(gpt2_mini, 2), "blocks.2.attn.hook_z"
    length = task.tokens.shape[1]
    nodes = [n for n in _heads(model, length) if n.layer != 2]
    nodes += [
        Node(f"feature 2/{f} @{p}", "feature", 2, p, feature=f) for f in range(sae.cfg.d_sae) for p in range(length)
    ]
    graph = _graph(model, task, nodes, {2: sae.hash})
    result = faithfulness(model, task, graph, FaithfulnessConfig(n_random=0), saes={hook: sae})
    z = model.run_with_cache(task.tokens, [hook])[1][hook].flatten(-2)
    other = model.run_with_cache(task.corrupted, [hook])[1][hook].flatten(-2)
    new = (sae(z) + other - sae(other)).unflatten(-1, (6, -1))
    with model.hooks({hook: lambda _x, _name: new}):
        expected = task.metric_fn()(model(task.tokens)).double().numpy()
    np.testing.assert_allclose(result.metrics["circuit"], expected, atol=2e-5)
    with pytest.raises(ConfigError, match=r"layers \[2\], given are \[\]"):
        faithfulness(model, task, graph)
    other_graph = _graph(model, task, nodes, {2: "0" * 16})
    with pytest.warns(UserWarning, match=f"{'0' * 16} and is ablated with {sae.hash}"):
        faithfulness(model, task, other_graph, FaithfulnessConfig(n_random=0), saes={hook: sae})


def test_a_traced_circuit_beats_random_ones(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    task = make_task(gpt2_mini, TaskConfig(task="induction", n_prompts=12, seed=0))
    config = TraceConfig(threshold=0.02, top_n=10)
    graphs = [
        trace(
            gpt2_mini,
            task.tokens[row],
            LogitTarget((int(task.right[row, 0]),), (int(task.wrong[row, 0]),)),
            config,
        )
        for row in range(len(task))
    ]
    result = faithfulness(gpt2_mini, task, graphs, FaithfulnessConfig(n_random=4))
    summary = result.summary()
    assert summary["n_units"] < 0.2 * summary["n_units_of"]
    assert summary["faithfulness"] > max(result.random)
    assert summary["left_without_circuit"] < summary["faithfulness"]
    run = result.save(Workspace(tmp_path), gpt2_mini.ref)
    assert run.summary["random_max"] == max(result.random)
    assert run.summary["same_places_max"] == max(result.same_places)
    # Heads drawn where the circuit has its own change more than heads drawn anywhere, and recover less than the circuit.
    assert np.abs(result.random).mean() < np.abs(result.same_places).mean()
    assert max(result.same_places) < summary["faithfulness"]
    assert len(result.plot().data[0].x) == 12
    assert run.summary["n_random"] == 4
    assert run.summary["same_places_median"] == np.median(result.same_places)
    assert run.summary["same_places_min"] == min(result.same_places)


def test_controls_keep_the_circuits_numbers(gpt2_mini: HookedModel, random_task: Any) -> None:
    task = random_task()
    nodes = [n for n in _heads(gpt2_mini, task.tokens.shape[1]) if n.head < 2 and n.layer > 1 and n.position in (3, 4)]
    ablation = _Ablation(gpt2_mini, task, FaithfulnessConfig(), {})
    circuit = ablation.units([_graph(gpt2_mini, task, nodes)] * len(task))
    draws = [ablation.shuffled(circuit, torch.Generator().manual_seed(s), in_place=True) for s in range(20)]
    for layer, keep in circuit.items():
        for drawn in draws:
            assert torch.equal(drawn[layer].sum(-1), keep.sum(-1))  # of each prompt and position
        anywhere = ablation.shuffled(circuit, torch.Generator().manual_seed(0))[layer]
        assert torch.equal(anywhere.flatten(1).sum(1), keep.flatten(1).sum(1))
    seen = torch.stack([d[3] for d in draws]).any(0)
    assert seen[:, 3:5].all()  # every head has its turn
    assert not seen[:, 5:].any()


def test_the_share_is_a_ratio_of_means() -> None:
    full, nothing, values = (np.tile(x, 4) for x in ([3.0, 5.0], [1.0, 1.0], [2.0, 3.0]))
    share, low, high = recovered(values, full, nothing, seed=0)
    assert share == pytest.approx(0.5)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.5)
    assert np.isnan(recovered(values, nothing, nothing, seed=0)[0])
    few = recovered(values[:2], full[:2], nothing[:2], seed=0)
    assert few[0] == pytest.approx(0.5)
    assert np.isnan(few[1:]).all()


def test_bad_input_is_named(gpt2_mini: HookedModel, random_task: Any) -> None:
    task = random_task()
    with pytest.raises(ConfigError, match="'men'"):
        FaithfulnessConfig(mode="men")
    with pytest.raises(ConfigError, match="2 graphs for 3 prompts"):
        faithfulness(gpt2_mini, task, [_graph(gpt2_mini, task, [])] * 2)
