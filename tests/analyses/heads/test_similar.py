"""Similarity of heads beside plain loops over whole maps and projectors, and heads that are made alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.heads import LogitsConfig, SimilarConfig, head_logits, similar_heads
from attlas.analyses.heads.similar import clusters_of
from attlas.analyses.heads.weights import folded
from attlas.cli import main
from attlas.data.stats import bootstrap_mean
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel, load_model

ALL = SimilarConfig(batch_size=3, n_rows=99, n_control=0)  # every query behind the first


@pytest.fixture(scope="module")
def text() -> TokenDataset:
    draw = torch.Generator().manual_seed(4)
    return TokenDataset.from_tokens(torch.randint(61, (6, 11), generator=draw), "random")


@pytest.fixture(scope="module")
def model() -> HookedModel:
    """A random GPT-2 whose last head is a copy of the first head of its layer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=3))
    for parameter in hf.parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
    attention = hf.transformer.h[1].attn
    for part in range(3):  # q, k, v: heads of 8 columns each
        for values in (attention.c_attn.weight.data, attention.c_attn.bias.data):
            values[..., 24 * part + 16 : 24 * part + 24] = values[..., 24 * part : 24 * part + 8]
    attention.c_proj.weight.data[16:] = attention.c_proj.weight.data[:8]
    return load_model(hf.eval(), device="cpu")


@pytest.mark.parametrize("name", ["model", "tiny_llama"])
def test_patterns_and_subspaces_by_plain_loops(name: str, text: TokenDataset, request: pytest.FixtureRequest) -> None:
    model: HookedModel = request.getfixturevalue(name)
    found = similar_heads(model, text, ALL).measures
    layers = range(model.cfg.n_layers)
    cache = model.capture(text.tokens, "blocks.*.attn.hook_pattern")
    maps = torch.cat([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in layers], 1).double()[:, :, 1:]
    weights = folded(model)
    spans = {"ov_reads": weights.W_V, "ov_writes": weights.W_O.mT, "qk_queries": weights.W_Q, "qk_keys": weights.W_K}
    projectors = {n: (lambda a: a @ torch.linalg.pinv(a))(span.flatten(0, 1)) for n, span in spans.items()}
    pairs = [(0, 1), (1, maps.shape[1] - 1), (3, maps.shape[1] - 1)]
    for one, other in pairs:
        a, b = maps[:, one], maps[:, other]
        off = [x[..., 1:] for x in (a, b)]
        expected = {
            "pattern": (a * b).sqrt().sum(-1).mean(),
            "pattern_off_sink": (off[0] * off[1]).sqrt().sum() / (off[0].sum() * off[1].sum()).sqrt(),
        }
        for n, projector in projectors.items():
            expected[n] = (projector[one] @ projector[other]).trace() / model.cfg.d_head
        for n, value in expected.items():
            assert found[n][one, other] == pytest.approx(float(value), abs=1e-5), n
            assert found[n][other, one] == pytest.approx(float(value), abs=1e-5), n


def test_patterns_on_another_sequence(model: HookedModel, text: TokenDataset) -> None:
    found = similar_heads(model, text.take(2), ALL).measures["pattern_elsewhere"]
    maps = model.capture(text.tokens[:2], "blocks.1.attn.hook_pattern")["blocks.1.attn.hook_pattern"].double()
    one, other = maps[:, 0, 1:, 1:], maps[:, 1, 1:, 1:]  # heads 1.0 and 1.1
    crossed = (one[0] * other[1]).sqrt().sum() + (one[1] * other[0]).sqrt().sum()
    assert found[3, 4] == pytest.approx(float(crossed / (one.sum() * other.sum()).sqrt()), abs=1e-5)
    assert np.isnan(similar_heads(model, text.take(1), ALL).measures["pattern_elsewhere"]).all()


def test_intervals_by_drawing_sequences_anew(model: HookedModel) -> None:
    draw = torch.Generator().manual_seed(5)
    text = TokenDataset.from_tokens(torch.randint(61, (9, 11), generator=draw), "random")
    found = similar_heads(model, text, ALL)
    cache = model.capture(text.tokens, "blocks.*.attn.hook_pattern")
    maps = torch.cat([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(2)], 1).double()[:, :, 1:, 1:]
    roots = maps.sqrt().flatten(2).numpy()  # [sequence, head, query · key]
    pairs = np.array([(0, 1), (2, 4), (3, 5)])
    low, high = found.interval(pairs)
    for at, (one, other) in enumerate(pairs):

        def cosine(kept: list[int], one: int = one, other: int = other) -> float:
            a, b = roots[kept, one].ravel(), roots[kept, other].ravel()
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

        whole = cosine(list(range(9)))
        without = [cosine([s for s in range(9) if s != left]) for left in range(9)]
        expected = bootstrap_mean(np.array([9 * whole - 8 * part for part in without]), seed=ALL.seed)
        np.testing.assert_allclose((low[at], high[at]), np.clip(expected[1:], 0, 1), atol=1e-4)
        assert found.measures["pattern_off_sink"][one, other] == pytest.approx(whole, abs=1e-5)
    np.testing.assert_allclose((low[2], high[2]), 1, atol=1e-5)  # a head and its copy
    assert low[0] < high[0] - 1e-3
    row = next(r for r in found.tables()["head_similar"].to_pylist() if (r["layer"], r["head"]) == (0, 0))
    assert row["alike_low"] < row["alike_high"]
    few = similar_heads(model, text.take(4), ALL).tables()["head_similar"].to_pylist()
    assert {r["alike_low"] for r in few} == {None}, "four sequences make no interval"


def test_a_copy_is_found_and_random_weights_are_no_copies(model: HookedModel, text: TokenDataset) -> None:
    found = similar_heads(model, text, SimilarConfig(n_rows=4, n_control=4, n_similar=1, alike=0.999))
    assert found.like(1, 0, n=1)[0] == ("1.2", pytest.approx(1, abs=1e-5))
    assert found.summary()["most_similar"] == "1.0 and 1.2"
    tables = found.tables()
    clusters = {(r["layer"], r["head"]): r["pattern_cluster"] for r in tables["head_clusters"].to_pylist()}
    assert clusters[1, 0] == clusters[1, 2] == 0
    assert len(set(clusters.values())) == 5
    first = next(r for r in tables["head_similar"].to_pylist() if (r["layer"], r["head"], r["rank"]) == (1, 2, 0))
    assert (first["other_layer"], first["other_head"]) == (1, 0)
    assert first["ov_writes"] == pytest.approx(1, abs=1e-5)
    control = {r["compared_by"]: r for r in tables["head_similarity"].to_pylist()}
    assert control["pattern_off_sink"]["random_pair_q95"] > 0.9, "maps of random weights are near even, so all alike"
    assert control["qk_keys"]["random_pair_median"] == pytest.approx(8 / 24, abs=0.06)


def test_two_models(model: HookedModel, tiny_llama: HookedModel, text: TokenDataset) -> None:
    found = similar_heads(model, text, SimilarConfig(n_rows=3, n_control=0), other=model)
    assert found.like(0, 1, n=1) == [("*0.1", pytest.approx(1, abs=1e-5))]
    assert len(found.heads) == 12
    apart = similar_heads(model, text, SimilarConfig(n_rows=3, n_control=0), other=tiny_llama)
    assert "ov_reads" not in apart.measures, "residual streams of different widths share no directions"
    assert {r["ov_reads"] for r in apart.tables()["head_similar"].to_pylist()} == {None}
    with pytest.raises(ConfigError, match="one token"):
        similar_heads(model, TokenDataset.from_tokens(text.tokens[:, :1].contiguous(), "short"), ALL)


def test_clusters() -> None:
    blocks = np.kron(np.eye(3), np.ones((2, 2)))[:5, :5]
    assert clusters_of(blocks, 0.8).tolist() == [0, 0, 1, 1, 2]
    assert clusters_of(np.ones((1, 1)), 0.8).tolist() == [0]
    assert clusters_of(np.full((4, 4), 0.9), 0.8).tolist() == [0] * 4


@pytest.mark.parametrize("name", ["model", "tiny_llama"])
def test_direct_logits_are_what_the_logits_lose(name: str, text: TokenDataset, request: pytest.FixtureRequest) -> None:
    """In the last layer of a model without its MLP's answer: what the centred logit falls by, the norm's scale frozen."""
    model: HookedModel = request.getfixturevalue(name)
    found = head_logits(model, text, LogitsConfig(batch_size=4))
    tokens, last = text.tokens, model.cfg.n_layers - 1
    cache = model.capture(
        tokens, ["blocks.*.attn.hook_result", f"blocks.{last}.hook_resid_post", "ln_final.hook_scale"]
    )

    def centred(residual: torch.Tensor) -> torch.Tensor:
        x = residual.double() - (residual.double().mean(-1, keepdim=True) if model.cfg.norm == "ln" else 0)
        norm = model.final_norm
        x = x / cache["ln_final.hook_scale"].double() * norm.weight.double()  # type: ignore[operator]
        logits = (x + getattr(norm, "bias", torch.zeros(1)).double()) @ model.W_U.double()
        return (logits - logits.mean(-1, keepdim=True))[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]

    whole = cache[f"blocks.{last}.hook_resid_post"]
    np.testing.assert_allclose(found.whole, centred(whole).mean(1).detach(), atol=1e-4)
    for layer, head in ((0, 1), (last, 2)):
        without = centred(whole.double() - cache[f"blocks.{layer}.attn.hook_result"][:, :, head].double())
        loss = (centred(whole) - without).detach()
        np.testing.assert_allclose(found.direct[:, layer, head], loss.mean(1), atol=1e-4)
        np.testing.assert_allclose(found.raised[:, layer, head], (loss > 0).double().mean(1), atol=0.11)
        np.testing.assert_allclose(found.size[:, layer, head], loss.abs().mean(1), atol=1e-4)


def test_images_have_no_next_token(vit_mini: HookedModel, text: TokenDataset) -> None:
    with pytest.raises(UnsupportedModelError, match="no next token"):
        head_logits(vit_mini, text)


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--n-tokens", "64", "--seq-len", "16", "--workspace", str(tmp_path), "--json"]
    assert main(["heads", "similar", "--n-control", "0", "--n-rows", "2", *few]) == 0
    assert main(["heads", "effects", "--ablations", "zero", *few]) == 0
    similar, effects = map(json.loads, capsys.readouterr().out.splitlines())
    workspace = Workspace(tmp_path)
    assert similar["n_heads"] == 24
    assert {run.kind for run in workspace.runs()} == {"head_similar", "head_effects", "head_logits"}
    run = next(iter(workspace.runs("head_logits")))
    assert effects["logits"]["run"] == run.id
    assert workspace.read_table(run, "head_logits").num_rows == 24
