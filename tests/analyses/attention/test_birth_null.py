"""Births of heads against their null: random weights have none, the null is what a plain computation gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from attlas.analyses.attention.birth_null import (
    NEAR,
    _at_distances,
    _turned,
    family_wise,
    null_scores,
)
from attlas.analyses.attention.head_timeline import TimelineConfig, TimelineResult, timeline
from attlas.analyses.common.repeats import SCORES, repeat_scores, repeated_tokens
from attlas.data.checkpoints import Checkpoint, find_checkpoints
from attlas.data.text import TokenDataset
from attlas.data.workspace import Ref
from attlas.errors import ConfigError
from attlas.interp import Attended, HookedModel, ModelConfig, attended, load_model
from attlas.kernels import AttentionRule


def _random_gpt2(seed: int, gain: float = 1.0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=48, n_layer=3, n_head=6)).eval()
    for block in model.transformer.h:
        block.attn.c_attn.weight.data *= gain
    return model


def _random_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=97, num_attention_heads=6, num_key_value_heads=2, **sizes)
    return LlamaForCausalLM(config).eval()


def test_heads_with_random_weights_exceed_their_null_as_often_as_it_says() -> None:
    """Of 12 models × 3 scores, those with any head of 18 above: 5 % each, fewer by the second null."""
    config, beyond = TimelineConfig(repeat_length=24, n_repeats=2), 0
    for seed in range(4):
        for plain in (_random_gpt2(seed), _random_gpt2(seed, gain=8.0), _random_llama(seed)):
            model = load_model(plain, device="cpu")
            tokens = repeated_tokens(model, length=config.repeat_length, n=config.n_repeats, seed=config.seed)
            scores, null = repeat_scores(model, tokens), null_scores(model, tokens, n_draws=30, seed=seed)
            beyond += sum(bool((scores[name] > null[name]).any()) for name in SCORES)
    assert beyond <= 6  # 36 · 0.05 = 1.8; more than 6 has a chance of 0.2 %


def test_random_checkpoints_have_no_births(tmp_path: Path) -> None:
    """The heads of an untrained model, and of the same a little later: none is born."""
    first, later = _random_gpt2(3, gain=4.0), _random_gpt2(3, gain=4.0)
    for parameter in later.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    for step, model in ((10, first), (20, later)):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    text = TokenDataset(torch.randint(0, 97, (4, 32)), "random", "0")
    found = timeline(find_checkpoints(tmp_path), lambda _model: text, TimelineConfig(repeat_length=24), device="cpu")
    for score in SCORES:
        assert found.births(score) == []
        assert np.isfinite(found.columns[f"{score}_null"]).all()
    assert "induction_head" not in found.summary()


def test_a_planted_previous_token_head_exceeds_its_null() -> None:
    """Positive control: queries that ask for the position before, by one-hot keys."""
    model = load_model(_random_gpt2(0), device="cpu")
    attn = model.hf.transformer.h[0].attn
    width = model.cfg.d_model
    model.hf.transformer.wpe.weight.data.zero_()
    angle = torch.arange(64.0)[:, None] * torch.tensor([0.3, 0.7, 1.1, 1.9])
    model.hf.transformer.wpe.weight.data[:, :8] = torch.cat([angle.cos(), angle.sin()], 1)
    turn = torch.zeros(8, 8)  # by one position back
    for i, speed in enumerate((0.3, 0.7, 1.1, 1.9)):
        c, s = np.cos(speed), np.sin(speed)
        turn[i, i], turn[i + 4, i], turn[i, i + 4], turn[i + 4, i + 4] = c, s, -s, c
    attn.c_attn.weight.data[:8, :8] = 3 * turn
    attn.c_attn.weight.data[:8, width : width + 8] = 3 * torch.eye(8)
    tokens = repeated_tokens(model, length=24, n=4)
    score, null = (f(model, tokens)["previous_token"] for f in (repeat_scores, null_scores))
    assert score[0, 0] > 0.3
    assert score[0, 0] > 1.5 * null[0, 0]


def test_distances_are_those_of_the_attention_maps() -> None:
    plain = _random_gpt2(1, gain=6.0)
    model = load_model(plain, device="cpu")
    tokens = repeated_tokens(model, length=20, n=3)
    plain.set_attn_implementation("eager")
    maps = torch.stack(plain(tokens, output_attentions=True).attentions).double()  # [layer, n, head, T, T]
    found = [_at_distances(layer, tokens) for layer in attended(model, tokens)]
    profile = torch.stack([maps.diagonal(-d, -2, -1)[..., 21 - d :].mean((1, -1)) for d in range(21)])
    for name, near in (
        ("previous_token", [0, *range(2, 11)]),
        ("duplicate_token", range(9, 19)),
        ("induction", range(9, 19)),
    ):
        assert len(near) == NEAR
        expected = np.quantile(profile[list(near)].detach().numpy(), 0.95, axis=0)
        for layer in range(3):
            np.testing.assert_allclose(found[layer][list(SCORES).index(name)], expected[layer], rtol=1e-4)


def _shape(rotary: int, pairs: str) -> ModelConfig:
    positional = "rotary" if rotary else "learned"
    return ModelConfig(
        "llama", "llama", 1, 3, 3, 24, 8, 96, 64, positional=positional, rotary_dim=rotary, rotary_pairs=pairs
    )


@pytest.mark.parametrize(("rotary", "pairs"), [(0, "half"), (8, "half"), (4, "half"), (4, "next"), (8, "next")])
def test_turns_keep_norms_and_commute_with_rotary_positions(rotary: int, pairs: str) -> None:
    q = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    speed = torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=torch.float64)[: rotary // 2]
    phase = torch.polar(torch.ones(5, rotary // 2, dtype=torch.float64), torch.arange(5.0).double()[:, None] * speed)

    def rope(x: torch.Tensor) -> torch.Tensor:
        moving, still = x[..., :rotary], x[..., rotary:]
        if pairs == "next":
            z = torch.view_as_complex(moving.unflatten(-1, (-1, 2)).contiguous()) * phase
            return torch.cat([torch.view_as_real(z).flatten(-2), still], -1)
        z = torch.complex(moving[..., : rotary // 2], moving[..., rotary // 2 :]) * phase
        return torch.cat([z.real, z.imag, still], -1)

    def turn(x: torch.Tensor) -> torch.Tensor:
        same = torch.Generator().manual_seed(1)
        return _turned(Attended(0, x, x, AttentionRule(causal=True)), _shape(rotary, pairs), same).q

    turned = turn(q)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))
    assert ((turned - q).abs().mean((0, 1, 2)) > 0.1).all()
    torch.testing.assert_close(turn(rope(q)), rope(turned))


def test_one_in_twenty_draws_has_a_head_above_its_bar() -> None:
    rng, scale = np.random.default_rng(0), np.array([[0.1, 1.0, 30.0]] * 4)
    bars = family_wise(scale * (5 + rng.normal(size=(2_000, 4, 3))))
    fresh = scale * (5 + rng.normal(size=(4_000, 4, 3)))
    assert 0.03 < (fresh > bars).any((1, 2)).mean() < 0.07


def _result(scores: list[float], null: list[float]) -> TimelineResult:
    columns = {"induction": np.reshape(scores, (-1, 1, 1)), "induction_null": np.reshape(null, (-1, 1, 1))}
    steps = tuple(Checkpoint(100 * (i + 1), Path(f"step-{i}")) for i in range(len(scores)))
    return TimelineResult(steps, columns, {}, Ref("m", "0"), TimelineConfig())


def test_a_birth_is_where_the_score_stays_above() -> None:
    (birth,) = _result([0.3, 0.1, 0.3, 0.4], [0.2, 0.2, 0.2, 0.25]).births()
    assert (birth.after, birth.by, birth.score, birth.null) == (200, 300, 0.4, 0.25)
    assert _result([0.3, 0.3], [0.2, 0.2]).births()[0].after == 0
    assert _result([0.3, 0.3, 0.1], [0.2, 0.2, 0.2]).births() == []
    assert _result([0.3, 0.3], [np.nan, np.nan]).births() == []  # no null was drawn
    with pytest.raises(ConfigError, match="n_draws"):
        TimelineConfig(n_draws=-1)


def test_trained_heads_are_born_and_others_are_not(gpt2_mini: HookedModel) -> None:
    tokens = repeated_tokens(gpt2_mini, n=4)
    score, null = repeat_scores(gpt2_mini, tokens)["induction"], null_scores(gpt2_mini, tokens)["induction"]
    assert {(int(layer), int(head)) for layer, head in np.argwhere(score > null)} == {(3, 0), (3, 4)}
    assert (null < 0.1).all()
