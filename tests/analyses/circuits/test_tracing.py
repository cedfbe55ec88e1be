"""Traces against autograd through a forward pass written out by hand with patterns, norms and MLPs held fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.analyses.circuits.frozen import FrozenPass
from attlas.analyses.circuits.graph import CircuitGraph
from attlas.analyses.circuits.terms import feature_row
from attlas.analyses.circuits.tracing import FeatureTarget, LogitTarget, TraceConfig, direct_attribution, trace
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError, ConservationError, PromptError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE
from attlas.saes.config import NORMALISATIONS, SAEConfig

ALL = TraceConfig(threshold=0.0, top_n=100_000, max_nodes=100_000)


@pytest.fixture(params=["gpt2_mini", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> HookedModel:
    return request.getfixturevalue(request.param)


def _tokens(length: int = 8, d_vocab: int = 101) -> Tensor:
    return torch.randint(d_vocab, (1, length), generator=torch.Generator().manual_seed(7))


def _frozen_forward(model: HookedModel, tokens: Tensor, embed: Tensor) -> Tensor:
    """Logits [T, V] as a function of the token embeddings alone, all that is not linear held at the run's values."""
    cfg = model.cfg
    cache = model.run_with_cache(tokens, lambda name: True)[1]
    cache = {name: tensor[0].detach().double() for name, tensor in cache.items()}

    def norm(x: Tensor, module: Any, scale: Tensor) -> Tensor:
        if cfg.norm == "ln":
            return (x - x.mean(-1, keepdim=True)) / scale * module.weight.double() + module.bias.double()
        return x / scale * module.weight.double()

    x = embed + (cache["hook_pos_embed"] if "hook_pos_embed" in cache else 0)
    for layer in range(cfg.n_layers):
        name = f"blocks.{layer}."
        y = norm(x, model.ln1(layer), cache[name + "ln1.hook_scale"])
        for head in range(cfg.n_heads):
            kv = head // (cfg.n_heads // cfg.n_kv_heads)
            v = y @ model.W_V(layer)[kv].double() + model.b_V(layer)[kv].double()
            x = x + cache[name + "attn.hook_pattern"][head] @ v @ model.W_O(layer)[head].double()
        x = x + model.b_O(layer).double() + cache[name + "hook_mlp_out"]
    return norm(x, model.final_norm, cache["ln_final.hook_scale"]) @ model.W_U.double()


def _incoming(graph: CircuitGraph, id: str) -> float:
    return sum(edge.weight for edge in graph.into(id))


def _conserved(graph: CircuitGraph) -> None:
    """Every followed node is the sum of its edges, and the ends together are the target."""
    followed = [n for n in graph.nodes if n.followed]
    for node in followed:
        assert _incoming(graph, node.id) == pytest.approx(node.value, rel=1e-4, abs=1e-4 * abs(graph.nodes[0].value))
        assert node.gap is not None
        assert node.gap < 1e-4
    ends = sum(n.influence for n in graph.nodes if not n.followed)
    assert ends == pytest.approx(graph.nodes[0].value, rel=1e-4)
    for node in graph.nodes[1:]:
        assert sum(e.influence for e in graph.out_of(node.id)) == pytest.approx(node.influence, rel=1e-6, abs=1e-9)


def test_embeddings_reach_the_logits_as_autograd_says(model: HookedModel) -> None:
    tokens = _tokens()
    graph = trace(model, tokens, LogitTarget((3,), (5, 6)), ALL)
    _conserved(graph)
    embed = model.run_with_cache(tokens, ["hook_embed"])[1]["hook_embed"][0].detach().double().requires_grad_()
    with torch.enable_grad():
        logits = _frozen_forward(model, tokens, embed)[-1]
        value = logits[3] - (logits[5] + logits[6]) / 2
        (slope,) = torch.autograd.grad(value, embed)
    assert graph.nodes[0].value == pytest.approx(float(value.detach()), rel=1e-4)
    for position in range(tokens.shape[1]):
        expected = float((slope[position] * embed[position].detach()).sum())
        assert graph.node(f"embed @{position}").influence == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_features_are_conserved_at_every_step(model: HookedModel, random_sae: Any) -> None:
    saes = {f"blocks.{layer}.attn.hook_z": random_sae(model, layer) for layer in (0, 2)}
    saes["blocks.1.hook_attn_out"] = random_sae(model, 1, "hook_attn_out")
    full = trace(model, _tokens(), LogitTarget((3,), (5,)), ALL, saes=saes)
    _conserved(full)
    kinds = {(n.kind, n.layer) for n in full.nodes}
    assert {("feature", 0), ("feature", 1), ("feature", 2), ("error", 1)} <= kinds
    assert not any(kind == "head" and layer < 3 for kind, layer in kinds)
    small = trace(model, _tokens(), LogitTarget((3,), (5,)), TraceConfig(threshold=0.02, top_n=4), saes=saes)
    _conserved(small)
    assert len(small.nodes) < len(full.nodes)
    assert sum(n.n_terms for n in small.nodes) > 0
    for edge in full.edges:
        if edge.loadings:
            assert sum(edge.loadings) == pytest.approx(edge.weight, rel=1e-6, abs=1e-9)
    reads = [e for e in full.edges if e.target.startswith("feature") and not e.source.startswith(("const", "rema"))]
    assert reads
    assert all(len(e.loadings) == model.cfg.n_heads for e in reads)


@torch.no_grad()
def test_a_feature_is_explained_by_sources_as_the_formula_says(model: HookedModel, random_sae: Any) -> None:
    """DFA[f, dest, src, h] = A[h, dest, src]·(v[src, h // group] · W_enc[h, f]), in loops."""
    tokens, dest = _tokens(), 6
    sae = random_sae(model, 1)
    hook, cfg = "blocks.1.attn.hook_z", model.cfg
    names = ["attn.hook_z", "attn.hook_v", "attn.hook_pattern"]
    cache = {n: t[0] for n, t in model.run_with_cache(tokens, [f"blocks.1.{n}" for n in names])[1].items()}
    f = sae.encode(cache[hook][dest].flatten())
    feature = int(f.argmax())
    found = direct_attribution(FrozenPass(model, tokens, {hook: sae}), 1, feature, dest)
    W = sae.W_enc.view(cfg.n_heads, cfg.d_head, -1)[..., feature]
    for head in range(cfg.n_heads):
        for src in range(dest + 1):
            v = cache["blocks.1.attn.hook_v"][src, head // (cfg.n_heads // cfg.n_kv_heads)]
            expected = cache["blocks.1.attn.hook_pattern"][head, dest, src] * (v @ W[head])
            assert float(found[head, src]) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
    rest = sae.b_enc[feature] - sae.b_dec @ sae.W_enc[:, feature]
    assert float(found.sum()) + float(rest) == pytest.approx(float(f[feature]), rel=1e-4)
    graph = trace(model, tokens, FeatureTarget(1, feature, dest), ALL, saes={hook: sae})
    _conserved(graph)
    assert graph.nodes[0].value == pytest.approx(float(f[feature]), rel=1e-4)
    by_head = torch.tensor([e.loadings for e in graph.into(graph.target) if e.loadings]).double().sum(0)
    _, constant, _ = feature_row(FrozenPass(model, tokens, {hook: sae}), 1, feature, dest)
    bias = next(n.value for n in graph.nodes if n.id == f"constant of {graph.target}") - constant
    assert float(by_head.sum()) + bias == pytest.approx(float(found.sum()), rel=1e-4)
    idle = int(f.argmin())
    with pytest.raises(ConfigError, match="not active"):
        trace(model, tokens, FeatureTarget(1, idle, dest), saes={hook: sae})


def _of_architecture(model: HookedModel, arch: str, normalisation: str = "none") -> SAE:
    width = model.cfg.n_heads * model.cfg.d_head
    sae = create_sae(
        SAEConfig(d_in=width, d_sae=2 * width, k=8, arch=arch, normalisation=normalisation,
                  hook_name="blocks.1.attn.hook_z", model_hash=model.weight_hash)
    )  # fmt: skip
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            value = torch.randn(tensor.shape, generator=draw)
            tensor.copy_(value.abs() * 0.2 if name == "threshold" else 0.2 * value)
    return sae


@pytest.mark.parametrize("normalisation", [n for n in NORMALISATIONS if n != "none"])
def test_normalised_tokens_are_split_exactly(tiny_llama: HookedModel, normalisation: str) -> None:
    tokens, hook = _tokens(), "blocks.1.attn.hook_z"
    sae = _of_architecture(tiny_llama, "batchtopk", normalisation)
    frozen = FrozenPass(tiny_llama, tokens, {hook: sae})
    parts, vectors = frozen.parts(6, 3)
    assert any(part.kind == "feature" for part in parts)
    torch.testing.assert_close(vectors.sum(0), frozen.cache["blocks.2.hook_resid_post"][6], atol=1e-4, rtol=1e-4)
    x = frozen.cache[hook][6].flatten().float()
    coefficients, bias, _error, W_dec = frozen.decomposed(1, 6)
    torch.testing.assert_close((coefficients.float() @ W_dec + bias.float()), sae(x).detach(), atol=1e-4, rtol=1e-4)


def test_a_size_limit_cuts_warns_and_keeps_the_rest_in_sight(gpt2_mini: HookedModel) -> None:
    with pytest.warns(UserWarning, match="reached 20 nodes"):
        graph = trace(gpt2_mini, _tokens(), LogitTarget((3,), (5,)), TraceConfig(threshold=0, top_n=50, max_nodes=20))
    _conserved(graph)
    assert sum(n.kind not in ("constant", "remainder") for n in graph.nodes) <= 20
    assert graph.warnings
    one = trace(gpt2_mini, _tokens(), LogitTarget((3,), (5,)), TraceConfig(depth=1))
    _conserved(one)
    assert [n.id for n in one.nodes if n.followed] == ["logits"]


def test_the_induction_circuit_is_found(gpt2_mini: HookedModel) -> None:
    """Heads of the card: an induction head in layer 3 (3.0) that reads the token after the earlier occurrence."""
    from attlas.analyses.tasks.catalog import make_task, score_task
    from attlas.analyses.tasks.task import TaskConfig

    task = make_task(gpt2_mini, TaskConfig(task="induction", n_prompts=24, seed=1))
    values = [float(score_task(gpt2_mini, task.take(slice(i, i + 1))).metric) for i in range(len(task))]
    mass: dict[tuple[int, int], float] = {}
    at_source = total = 0.0
    for row in sorted(range(len(task)), key=lambda i: -values[i])[:12]:
        graph = trace(gpt2_mini, task.tokens[row], LogitTarget((int(task.right[row, 0]),), (int(task.wrong[row, 0]),)))
        for head, share in graph.heads().items():
            mass[head] = mass.get(head, 0.0) + share / abs(graph.nodes[0].value)
        into = [e for e in graph.edges if e.target.startswith("head 3.0 ")]
        total += sum(e.influence for e in into)
        at_source += sum(e.influence for e in into if e.source.endswith(f"@{int(task.roles['source'][row])}"))
    assert max(mass, key=lambda head: mass[head]) == (3, 0)
    assert at_source / total > 0.5


def test_saved_graph(gpt2_mini: HookedModel, random_sae: Any, tmp_path: Path) -> None:
    saes = {"blocks.2.attn.hook_z": random_sae(gpt2_mini, 2)}
    graph = trace(gpt2_mini, _tokens(), LogitTarget((3,), (5,)), saes=saes)
    workspace = Workspace(tmp_path)
    run = graph.save(workspace)
    assert workspace.read_table(run, "circuit_nodes").num_rows == len(graph.nodes)
    edges = workspace.read_table(run, "circuit_edges")
    assert edges["weight"].to_pylist() == [e.weight for e in graph.edges]
    assert run.summary["gap"] < 1e-4


def test_bad_input_is_named(gpt2_mini: HookedModel, vit_mini: HookedModel, random_sae: Any) -> None:
    tokens = _tokens()
    with pytest.raises(UnsupportedModelError, match="vit-mini"):
        trace(vit_mini, tokens, LogitTarget((3,)))
    with pytest.raises(PromptError, match="2"):
        trace(gpt2_mini, torch.cat([tokens, tokens]), LogitTarget((3,)))
    sae = random_sae(gpt2_mini, 2)
    for target, match in (
        (LogitTarget((3,), (), 8), "8 tokens"),
        (LogitTarget((99_999,)), "99999"),
        (LogitTarget(()), "at least one"),
        (FeatureTarget(1, 0, 0), "there are: 2"),
        (FeatureTarget(2, sae.cfg.d_sae, 0), f"0–{sae.cfg.d_sae - 1}"),
    ):
        with pytest.raises(ConfigError, match=match):
            trace(gpt2_mini, tokens, target, saes={"blocks.2.attn.hook_z": sae})  # type: ignore[arg-type]
    other = random_sae(gpt2_mini, 2, "hook_attn_out")
    with pytest.raises(ConfigError, match="two autoencoders read layer 2"):
        FrozenPass(gpt2_mini, tokens, {"blocks.2.attn.hook_z": sae, "blocks.2.hook_attn_out": other})
    with pytest.raises(ConfigError, match=r"1\.5"):
        TraceConfig(threshold=1.5)
    with pytest.raises(ConservationError, match="float32"):
        trace(load_model("gpt2-mini", device="cpu", dtype="bfloat16"), tokens, LogitTarget((3,)))


@pytest.mark.downloads
def test_smollm2_is_conserved_too(smollm2: HookedModel) -> None:
    """30 layers, grouped keys, rotary positions, and residual streams with entries in the thousands."""
    from attlas.analyses.circuits.qk import QKConfig, qk_attribution
    from attlas.analyses.tasks.catalog import make_task
    from attlas.analyses.tasks.task import TaskConfig

    task = make_task(smollm2, TaskConfig(task="ioi", n_prompts=1))
    frozen = FrozenPass(smollm2, task.tokens[0])
    target = LogitTarget((int(task.right[0, 0]),), (int(task.wrong[0, 0]),))
    graph = trace(smollm2, task.tokens[0], target, TraceConfig(threshold=0.02, top_n=10), frozen=frozen)
    _conserved(graph)
    for layer, head in ((23, 3), (29, 8)):
        result = qk_attribution(smollm2, task.tokens[0], QKConfig(layer, head, -1, 2), frozen=frozen)
        assert result.gap < 1e-4
