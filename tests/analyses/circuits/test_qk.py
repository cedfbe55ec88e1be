"""QK attribution against the scores the model computes, for learned and rotary positions, shared keys and features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from attlas.analyses.circuits.frozen import FrozenPass
from attlas.analyses.circuits.qk import QKConfig, key_contrast, qk_attribution
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError, LayerRangeError
from attlas.interp import HookedModel


@pytest.fixture(params=["gpt2_mini", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> HookedModel:
    return request.getfixturevalue(request.param)


def _tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(101, (1, length), generator=torch.Generator().manual_seed(7))


def _hidden_states(model: HookedModel, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of a copy: transformers leaves its capturing hooks on the module for good, and other tests share the model."""
    return copy.deepcopy(model.hf)(input_ids=tokens, output_hidden_states=True).hidden_states


@torch.no_grad()
def _literal_score(model: HookedModel, layer: int, head: int, dest: int, src: int) -> float:
    """The score from Hugging Face's own modules."""
    states = _hidden_states(model, _tokens())[layer]
    if model.cfg.family == "gpt2":
        block = model.hf.transformer.h[layer]
        q, k, _ = block.attn.c_attn(block.ln_1(states)).chunk(3, -1)
        e = model.cfg.d_head
        return float(q[0, dest, head * e : (head + 1) * e] @ k[0, src, head * e : (head + 1) * e]) / e**0.5
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    block, e, length = model.hf.model.layers[layer], model.cfg.d_head, states.shape[1]
    x = block.input_layernorm(states)
    q = block.self_attn.q_proj(x).view(1, length, -1, e).transpose(1, 2)
    k = block.self_attn.k_proj(x).view(1, length, -1, e).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, *model.hf.model.rotary_emb(x, torch.arange(length)[None]))
    return float(q[0, head, dest] @ k[0, head // 3, src]) / e**0.5


@pytest.mark.parametrize("with_saes", [False, True])
def test_pairs_add_up_to_the_models_score(model: HookedModel, with_saes: bool, random_sae: Any) -> None:
    saes = {}
    if with_saes:
        saes = {"blocks.0.attn.hook_z": random_sae(model, 0)}
        saes["blocks.1.hook_attn_out"] = random_sae(model, 1, "hook_attn_out")
    for layer, head, dest, src in ((2, 0, 8, 3), (2, 5, 7, 7), (1, 3, 4, 0), (0, 1, 8, 2)):
        result = qk_attribution(model, _tokens(), QKConfig(layer, head, dest, src), saes=saes)
        expected = _literal_score(model, layer, head, dest, src)
        assert float(result.terms.sum()) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert result.score == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert result.gap < 1e-4
        kinds = {part.kind for part in result.src_parts}
        assert ("feature" in kinds) == (with_saes and layer > 0)
        assert result.dest_parts[-1].kind == "constant"
        table = result.table()
        assert sum(table["score"].to_pylist()) == pytest.approx(result.score, rel=1e-4, abs=1e-4)


def test_one_pair_is_the_bilinear_form_of_its_two_vectors(tiny_llama: HookedModel) -> None:
    """The embedding × embedding term in layer 1, by literal rotation of the two frozen-norm vectors."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model, tokens = tiny_llama, _tokens()
    layer, head, dest, src = 1, 4, 8, 2
    result = qk_attribution(model, tokens, QKConfig(layer, head, dest, src))
    i = [p.id for p in result.dest_parts].index("embed @8")
    j = [p.id for p in result.src_parts].index("embed @2")
    states = _hidden_states(model, tokens)[layer].detach()
    norm = model.hf.model.layers[layer].input_layernorm
    rms = (states.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    x = (model.hf.model.embed_tokens(tokens) / rms * norm.weight).detach()
    q = (x @ model.W_Q(layer)[head])[:, None]
    k = (x @ model.W_K(layer)[head // 3])[:, None]
    q, k = apply_rotary_pos_emb(q, k, *model.hf.model.rotary_emb(x, torch.arange(9)[None]))
    expected = (q[0, 0, dest] @ k[0, 0, src]) * model.cfg.d_head**-0.5
    assert float(result.terms[i, j]) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_sides_and_contrast(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    tokens = _tokens()
    result = qk_attribution(gpt2_mini, tokens, QKConfig(3, 0, -1, 4))
    assert sum(v for _, v in result.side("src")) == pytest.approx(result.score, rel=1e-4)
    assert sum(v for _, v in result.side("dest")) == pytest.approx(result.score, rel=1e-4)
    frozen = FrozenPass(gpt2_mini, tokens)
    scores = frozen.cache["blocks.3.attn.hook_attn_scores"][0, 8]
    contrast = key_contrast(frozen, 3, 0, 8, 4)
    assert sum(v for _, v in contrast) == pytest.approx(float(scores[4] - scores.mean()), abs=1e-4)
    assert "head 2.0" in dict(contrast)
    figure = result.plot(n=5)
    assert figure.data[0].z.shape == (6, 6)
    assert figure.data[0].z.sum() == pytest.approx(result.score, rel=1e-4)
    workspace = Workspace(tmp_path)
    run = result.save(workspace)
    assert workspace.read_table(run, "qk").num_rows == 101


def test_bad_input_is_named(gpt2_mini: HookedModel) -> None:
    tokens = _tokens()
    for config, error, match in (
        (QKConfig(4, 0), LayerRangeError, "0–3"),
        (QKConfig(1, 6), LayerRangeError, "0–5"),
        (QKConfig(1, 0, 3, 5), ConfigError, "cannot see position 5"),
        (QKConfig(1, 0, 9, 5), ConfigError, "9 tokens"),
    ):
        with pytest.raises(error, match=match):
            qk_attribution(gpt2_mini, tokens, config)
