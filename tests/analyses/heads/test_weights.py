"""Weights of heads beside whole d_model² and d_vocab² matrices in float64, and heads that are made to copy or compose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attlas.analyses.heads import WeightsConfig, head_weights
from attlas.analyses.heads.weights import folded, top_pairs
from attlas.cli import main
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel, load_model

SMALL = WeightsConfig(n_pairs=5, n_vocab=0, chunk=17, n_random=8)


def _gpt2() -> HookedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=3))
    for parameter in hf.parameters():  # norms of weights other than 1, biases other than 0
        parameter.data += torch.randn_like(parameter) * 0.3
    return load_model(hf.eval(), device="cpu")


@pytest.fixture(scope="module")
def models(tiny_llama: HookedModel) -> dict[str, HookedModel]:
    return {"gpt2": _gpt2(), "llama": tiny_llama}


def _through_norm(norm: nn.Module, x: Tensor, *, scale: bool = True) -> Tensor:
    """The norm itself, without its bias; without its scale: its gain and centring alone."""
    gain = norm.weight.detach().double()  # type: ignore[operator]
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    return (x / x.pow(2).mean(-1, keepdim=True).sqrt() if scale else x) * gain


def _whole(model: HookedModel, layer: int, head: int) -> dict[str, Tensor]:
    """Matrices by plain algebra: the circuits in the residual stream [d, d] and through the vocabulary [V, V]."""
    norm, kv = model.ln1(layer), head * model.cfg.n_kv_heads // model.cfg.n_heads
    Q, K, V, out = (
        w.detach().double()
        for w in (model.W_Q(layer)[head], model.W_K(layer)[kv], model.W_V(layer)[kv], model.W_O(layer)[head])
    )
    identity = torch.eye(model.cfg.d_model, dtype=torch.float64)
    E = model.structure.embed.weight.detach().double()  # type: ignore[operator]
    unembed = _through_norm(model.final_norm, identity, scale=False) @ model.W_U.detach().double()
    reads, tokens = _through_norm(norm, identity, scale=False), _through_norm(norm, E)
    scale = model.cfg.d_head**-0.5
    return {
        "qk": reads @ Q @ K.T @ reads.T * scale,
        "ov": reads @ V @ out,
        "qk_tokens": tokens @ Q @ K.T @ tokens.T * scale,
        "ov_tokens": tokens @ V @ out @ unembed,
    }


def _score(matrix: Tensor) -> float:
    values = np.linalg.eigvals(matrix.numpy())
    return float(values.real.sum() / np.abs(values).sum())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_scores_are_those_of_whole_matrices(name: str, models: dict[str, HookedModel]) -> None:
    model = models[name]
    found = head_weights(model, SMALL)
    for layer, head in ((0, 0), (1, 2), (model.cfg.n_layers - 1, model.cfg.n_heads - 1)):
        whole = _whole(model, layer, head)
        for circuit in ("ov", "qk"):
            values = np.linalg.svd(whole[circuit].numpy(), compute_uv=False)
            e = model.cfg.d_head
            np.testing.assert_allclose(found.spectra[circuit][layer, head], values[:e], rtol=1e-6, atol=1e-9)
            share = values[:e] / values[:e].sum()
            rank = np.exp(-(share * np.log(share)).sum())
            assert found.scores[f"{circuit}_rank"][layer, head] == pytest.approx(rank, rel=1e-6)
            assert found.scores[f"{circuit}_norm"][layer, head] == pytest.approx(
                np.linalg.norm(whole[circuit]), rel=1e-6
            )
            best = np.sort(whole[f"{circuit}_tokens"].numpy().ravel())[::-1][:5]
            rows = [r for r in found.pairs if (r["layer"], r["head"], r["circuit"]) == (layer, head, circuit)]
            np.testing.assert_allclose([row["pair_value"] for row in rows], best, rtol=1e-4)
            for row in rows:
                exact = whole[f"{circuit}_tokens"][row["from_token"], row["to_token"]]
                assert row["pair_value"] == pytest.approx(float(exact), rel=1e-4)
        assert found.scores["copying"][layer, head] == pytest.approx(_score(whole["ov_tokens"]), abs=1e-6)
        assert found.scores["matching"][layer, head] == pytest.approx(_score(whole["qk_tokens"]), abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_composition_is_the_ratio_of_whole_matrices(name: str, models: dict[str, HookedModel]) -> None:
    model = models[name]
    rows = head_weights(model, SMALL).ratios
    n = model.cfg.n_layers
    assert len(rows) == model.cfg.n_heads**2 * n * (n - 1) // 2
    norm = np.linalg.norm
    for row in rows[::7]:
        early, late = (_whole(model, row[f"{at}layer"], row[f"{at}head"]) for at in ("from_", ""))
        moves = early["ov"].numpy()
        for kind, matrix in (("q", late["qk"]), ("k", late["qk"].T), ("v", late["ov"])):
            m = matrix.numpy()
            assert row[f"{kind}_composition"] == pytest.approx(norm(moves @ m) / (norm(moves) * norm(m)), rel=1e-6)


def test_random_weights_compose_as_the_baseline_says() -> None:
    """A fresh model is the negative control; a head that reads what another writes stands far above."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=96, n_layer=2, n_head=4)).eval()
    model = load_model(hf, device="cpu")
    config = WeightsConfig(n_vocab=8, n_pairs=1)
    fresh = head_weights(model, config)
    spread = fresh.random.std(ddof=1)
    values = np.array([[row[f"{kind}_composition"] for kind in "qkv"] for row in fresh.ratios])
    assert values.mean() == pytest.approx(fresh.random.mean(), abs=3 * spread)
    assert np.abs(fresh.scores["copying"]).max() < 0.9
    with torch.no_grad():
        early, late = hf.transformer.h[0].attn, hf.transformer.h[1].attn
        late.c_attn.weight[:, 96 + 24 : 96 + 48] = early.c_proj.weight[48:72].T  # key of 1.1 reads what 0.2 writes
    made = head_weights(model, config)
    row = max(made.ratios, key=lambda row: row["k_composition"])
    assert (row["from_head"], row["head"]) == (2, 1)
    assert row["k_composition"] > fresh.random.mean() + 8 * spread
    assert made.summary()["top_k_composition"]["heads"] == "0.2 → 1.1"


def test_a_head_made_to_copy_has_the_highest_score() -> None:
    model = _gpt2()
    before = head_weights(model, SMALL).scores["copying"]
    with torch.no_grad():
        attn, norm, last = model.hf.transformer.h[1].attn, model.ln1(1), model.final_norm
        basis = torch.linalg.qr(torch.randn(24, 8)).Q
        attn.c_attn.weight[:, 48:56] = basis / norm.weight[:, None]  # value of 1.0
        attn.c_proj.weight[:8] = basis.T / last.weight
    after = head_weights(model, SMALL)
    assert after.scores["copying"][1, 0] > 0.999
    assert np.abs(before).max() < 0.999
    assert after.summary()["top_copying_head"] == "1.0"


def test_kv_heads_stand_for_their_query_heads(models: dict[str, HookedModel]) -> None:
    weights = folded(models["llama"])
    assert torch.equal(weights.W_V[1, 0], weights.W_V[1, 2])
    assert not torch.equal(weights.W_V[1, 2], weights.W_V[1, 3])


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_top_pairs_are_those_of_the_whole_matrix(chunk: int) -> None:
    rows, columns = torch.randn(7, 3), torch.randn(5, 3)
    values, a, b = top_pairs(rows, columns, 40, chunk)
    assert len(values) == 35
    torch.testing.assert_close(values, (rows @ columns.T).flatten().sort(descending=True).values)
    torch.testing.assert_close((rows @ columns.T)[a, b], values)


def test_images_have_no_tokens(vit_mini: HookedModel, tmp_path: Path) -> None:
    found = head_weights(vit_mini)
    assert np.isnan(found.scores["copying"]).all()
    assert found.pairs == []
    run = found.save(tmp_path, vit_mini)
    assert Workspace(tmp_path).read_table(run, "head_composition").num_rows == len(found.ratios) > 0
    assert found.plot().data


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "weights", "-w", str(tmp_path), "--n-vocab", "50", "--n-pairs", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    table = Workspace(tmp_path).read_table(Workspace(tmp_path).run(found["run"]), "head_token_pairs")
    assert table.num_rows == 24 * 2 * 2
    assert {"top_copying_head", "top_q_composition", "random_composition"} <= set(found)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="n_pairs 0"):
        WeightsConfig(n_pairs=0)
