"""Keys and queries in a graph: sums against the model's scores, and the induction circuit found without being told."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from attlas.analyses.circuits.attention import AttentionConfig, entries, explain_attention, score_terms
from attlas.analyses.circuits.frozen import FrozenPass
from attlas.analyses.circuits.graph import CircuitGraph, load_json
from attlas.analyses.circuits.graph_files import save_circuit_tracer, save_graphml, save_json
from attlas.analyses.circuits.tracing import LogitTarget, TraceConfig, trace
from attlas.analyses.circuits.validation import FaithfulnessConfig, faithfulness
from attlas.analyses.tasks.catalog import make_task
from attlas.analyses.tasks.task import TaskConfig
from attlas.errors import ConfigError
from attlas.interp import HookedModel


def _tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(101, (1, length), generator=torch.Generator().manual_seed(7))


@pytest.fixture(params=["gpt2_mini", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> HookedModel:
    return request.getfixturevalue(request.param)


@pytest.fixture
def graph(gpt2_mini: HookedModel, random_sae: Any) -> CircuitGraph:
    frozen = FrozenPass(gpt2_mini, _tokens(), {"blocks.2.attn.hook_z": random_sae(gpt2_mini, 2)})
    found = trace(gpt2_mini, _tokens(), LogitTarget((3,), (5,)), frozen=frozen)
    return explain_attention(frozen, found, AttentionConfig(share=0.02))


def test_both_sides_add_up_to_what_sets_the_score_apart(model: HookedModel) -> None:
    frozen = FrozenPass(model, _tokens())
    for entry in ((2, 1, 8, 3), (1, 5, 6, 6), (0, 0, 4, 0)):
        layer, head, dest, src = entry
        scores = frozen.cache[f"blocks.{layer}.attn.hook_attn_scores"][head, dest, : dest + 1]
        for terms in score_terms(frozen, entry).values():
            total = sum(value for _, value in terms)
            assert total == pytest.approx(float(scores[src] - scores.mean()), rel=1e-4, abs=1e-4)


def test_entries_hold_all_that_flows_through_attention(model: HookedModel) -> None:
    frozen = FrozenPass(model, _tokens())
    config = TraceConfig(threshold=0, top_n=10_000, max_nodes=10_000, depth=2)
    graph = trace(model, _tokens(), LogitTarget((3,), (5,)), config, frozen=frozen)
    found = entries(graph)
    for node in graph.nodes:
        if node.kind == "head" and node.followed:
            here = (node.layer, node.head, node.position)
            through = sum(v for (layer, head, dest, _), v in found.items() if (layer, head, dest) == here)
            constant = sum(e.weight for e in graph.into(node.id) if e.source.startswith("constant"))
            assert through + constant == pytest.approx(node.value, rel=1e-4, abs=1e-6)


def test_keys_and_queries_take_no_part_in_the_sums(graph: CircuitGraph) -> None:
    extra = [e for e in graph.edges if e.via != "value"]
    assert {e.via for e in extra} == {"key", "query"}
    assert not any(e.influence for e in extra)
    names = {n.id for n in graph.nodes}
    assert all(e.source in names for e in graph.edges)
    assert all(e.target in names for e in graph.edges)
    assert all(sum(e.loadings) == pytest.approx(e.weight) for e in extra)
    ends = sum(n.influence for n in graph.nodes if not n.followed)
    assert ends == pytest.approx(graph.nodes[0].value, rel=1e-4)


def test_the_induction_circuit_is_found_without_being_told(gpt2_mini: HookedModel) -> None:
    """What most sets the token after the earlier occurrence apart for the strongest head is head 2.0, which stands there
    for the token before; and with keys and queries the circuit does much of the task alone."""
    task = make_task(gpt2_mini, TaskConfig(task="induction", n_prompts=12, seed=0))
    keys: Counter[str] = Counter()
    plain, full = [], []
    for row in range(len(task)):
        frozen = FrozenPass(gpt2_mini, task.tokens[row])
        target = LogitTarget((int(task.right[row, 0]),), (int(task.wrong[row, 0]),))
        plain.append(trace(gpt2_mini, task.tokens[row], target, TraceConfig(threshold=0.02), frozen=frozen))
        full.append(explain_attention(frozen, plain[-1]))
        for edge in full[-1].edges:
            if edge.via == "key" and edge.target.startswith("head 3.0 "):
                keys[edge.source.split(" @")[0]] += edge.weight  # type: ignore[assignment]
    assert keys.most_common(1)[0][0] == "head 2.0"
    config = FaithfulnessConfig(n_random=3)
    values_alone = faithfulness(gpt2_mini, task, plain, config).summary()
    with_attention = faithfulness(gpt2_mini, task, full, config).summary()
    assert with_attention["faithfulness"] > 0.4
    assert with_attention["faithfulness"] > values_alone["faithfulness"] + 0.2
    assert with_attention["random_max"] < 0.1
    assert with_attention["n_units"] < 0.1 * with_attention["n_units_of"]


def test_files_hold_the_whole_graph(graph: CircuitGraph, tmp_path: Path) -> None:
    again = load_json(save_json(graph, tmp_path / "graph.json"))
    assert again == graph
    assert again != dataclasses.replace(graph, settings={**graph.settings, "threshold": 0.5})
    networkx = pytest.importorskip("networkx")
    found = networkx.read_graphml(save_graphml(graph, tmp_path / "graph.graphml"), force_multigraph=True)
    assert set(found.nodes) == {n.id for n in graph.nodes}
    assert found.number_of_edges() == len(graph.edges)
    assert found.nodes["logits"]["value"] == pytest.approx(graph.nodes[0].value)
    xml = ElementTree.parse(tmp_path / "graph.graphml").getroot()
    assert xml.tag.endswith("graphml")


def test_export_for_circuit_tracer(graph: CircuitGraph, tmp_path: Path) -> None:
    data = json.loads(save_circuit_tracer(graph, tmp_path / "g.ct.json", slug="g").read_text())
    assert set(data) == {"metadata", "qParams", "nodes", "links"}
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(set(ids)) == len(ids)
    assert all(link["source"] in ids for link in data["links"])
    assert all(link["target"] in ids for link in data["links"])
    logit = [node for node in data["nodes"] if node["is_target_logit"]]
    assert len(logit) == 1
    into = sum(link["weight"] for link in data["links"] if link["target"] == logit[0]["node_id"])
    constant = (
        graph.node("constant of logits").influence if any(n.id == "constant of logits" for n in graph.nodes) else 0
    )
    assert into + constant == pytest.approx(graph.nodes[0].value, rel=1e-4)
    assert data["metadata"]["prompt_tokens"] == list(graph.token_text)


def test_figures_show_every_node_but_constants(graph: CircuitGraph) -> None:
    figure = graph.plot()
    shown = {id for trace_ in figure.data if trace_.customdata is not None for id in trace_.customdata}
    assert shown == {n.id for n in graph.nodes if n.kind != "constant"}


def test_damaged_files_and_other_prompts_are_refused(
    graph: CircuitGraph, gpt2_mini: HookedModel, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    for text, match in (("{", "cannot be read"), ("{}", "not a circuit"), ('{"format": "attlas-circuit"}', "damaged")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            load_json(path)
    path.write_text('{"format": "attlas-circuit", "version": 9}')
    with pytest.raises(ConfigError, match="version 9"):
        load_json(path)
    with pytest.raises(ConfigError, match="another prompt"):
        explain_attention(FrozenPass(gpt2_mini, _tokens(8)), graph)
    with pytest.raises(ConfigError, match="no node 'head 9"):
        graph.node("head 9.9 @1")
    with pytest.raises(ConfigError, match="steps"):
        dataclasses.replace(AttentionConfig(), steps=0)
