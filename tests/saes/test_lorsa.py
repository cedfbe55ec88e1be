"""Lorsa: its function against loops in float64, its gradient, its start from a layer, its training, its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from attlas.cli import main
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import (
    ConfigError,
    ContextLengthError,
    LayerRangeError,
    UnsupportedModelError,
)
from attlas.interp import HookedModel, load_model
from attlas.saes import (
    LorsaTrainConfig,
    TrainConfig,
    load_lorsa,
    train_lorsa,
    train_sae,
)
from attlas.saes.lorsa.config import LorsaRotary
from attlas.saes.lorsa.model import Lorsa
from attlas.saes.lorsa.rotary import frequencies
from attlas.saes.lorsa.start import Sample, start_from_layer
from attlas.saes.lorsa.train import LayerData

from .lorsas import SHAPES, by_loops, drawn
from .stopped import StopAfter, StopError


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_the_formula(shape: dict[str, Any]) -> None:
    lorsa, x = drawn(**shape), torch.randn(2, 5, 6, dtype=torch.float64)
    close = {"atol": 1e-12, "rtol": 1e-10}
    every, t = torch.arange(8).repeat(5), torch.arange(5).repeat_interleave(8)
    for row in x:
        parts, z, y = by_loops(lorsa, row)
        torch.testing.assert_close(lorsa.encode(row[None])[0], z, **close)
        torch.testing.assert_close(lorsa(row[None])[0], y, **close)
        torch.testing.assert_close(lorsa.z_pattern(row, every, t).view(5, 8, 5), parts, **close)
        torch.testing.assert_close(lorsa.decode(lorsa.encode(row[None]))[0], y, **close)
    assert 0 < float((z > 0).double().mean()) < 1


@given(seed=st.integers(0, 50), at=st.integers(1, 6), rotary=st.booleans())
@settings(max_examples=25, deadline=None)
def test_later_tokens_change_nothing_before_them(seed: int, at: int, rotary: bool) -> None:
    lorsa = drawn(seed, rotary=LorsaRotary(4) if rotary else None)
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 7, 6, generator=draw, dtype=torch.float64)
    other = x.clone()
    other[:, at:] = torch.randn(1, 7 - at, 6, generator=draw, dtype=torch.float64) * 9
    before, after = lorsa.encode(x), lorsa.encode(other)
    torch.testing.assert_close(before[:, :at], after[:, :at], atol=1e-12, rtol=1e-10)
    assert not torch.allclose(lorsa.pre_activations(x)[:, at:], lorsa.pre_activations(other)[:, at:])


def test_contributions_sum_to_z() -> None:
    lorsa, x = drawn(rotary=LorsaRotary(4)), torch.randn(7, 6, dtype=torch.float64)
    z, indices = (t[0] for t in lorsa.encode_sparse(x[None]))
    t, place = (z > 0).nonzero(as_tuple=True)
    rows = lorsa.z_pattern(x, indices[t, place], t)
    torch.testing.assert_close(rows.sum(-1), z[t, place], atol=1e-12, rtol=1e-10)
    assert all(bool((rows[n, t[n] + 1 :] == 0).all()) for n in range(len(t)))


def test_gradients_are_the_numeric_ones() -> None:
    lorsa, draw = drawn(rotary=LorsaRotary(2), qk_norm=True), torch.Generator().manual_seed(3)
    x, y = (torch.randn(2, 4, 6, generator=draw, dtype=torch.float64) for _ in "xy")
    keep, names = torch.rand(2, 4, generator=draw) > 0.3, list(dict(lorsa.named_parameters()))

    def loss(*weights: Tensor) -> Tensor:
        return functional_call(lorsa, dict(zip(names, weights, strict=True)), (x, y, keep))

    lorsa.forward = lambda x, y, keep: lorsa.loss(x, y, keep).total  # type: ignore[method-assign, assignment]
    weights = [p.detach().requires_grad_() for p in lorsa.parameters()]
    assert torch.autograd.gradcheck(loss, weights, eps=1e-6, atol=1e-5, fast_mode=True)


def test_dead_features_explain_the_error() -> None:
    lorsa, x, y = drawn(), torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    keep, dead = torch.ones(2, 5, dtype=torch.bool), torch.arange(8) > 4
    found = lorsa.loss(x, y, keep, dead, aux_coefficient=0.5)
    error, guess = (
        y - lorsa(x),
        torch.relu(lorsa.pre_activations(x)[..., dead]) @ lorsa.W_O[dead],
    )  # D/2 = 3 dead: all take part
    torch.testing.assert_close(found.terms["auxk"], 0.5 * (error - guess).pow(2).sum(-1).mean().detach())
    assert float(lorsa.loss(x, y, keep, dead).terms["auxk"]) == 0


def test_loss_is_over_the_positions_that_count() -> None:
    lorsa, x, y = drawn(), torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    keep = torch.ones(2, 5, dtype=torch.bool)
    keep[:, 0] = False
    found = lorsa.loss(x, y, keep)
    expected = sum(float((y[b, t] - lorsa(x)[b, t]).pow(2).sum().detach()) for b in range(2) for t in range(1, 5)) / 8
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-12)
    assert int(found.fired_F.sum()) == round(float(found.l0) * 8)


# -- the start from a layer ------------------------------------------------------------------------------------------------


def looked_at(model: HookedModel, layer: int, tokens: Tensor) -> tuple[Sample, LayerData]:
    data = LayerData(model, layer, TokenDataset.from_tokens(tokens, "t"), 0, 1, ())
    z, pattern = (f"blocks.{layer}.attn.{name}" for name in ("hook_z", "hook_pattern"))
    x, y, keep, cache = data.batch(list(range(len(tokens))), z, pattern)
    return Sample(x, y, cache[z], cache[pattern][0], keep), data


@pytest.fixture(scope="module")
def gpt2() -> HookedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    for p in model.parameters():
        p.data.mul_(4)
    return load_model(model)


def tokens_of(model: HookedModel, n: int = 6, length: int = 12) -> TokenDataset:
    draw = torch.Generator().manual_seed(0)
    return TokenDataset.from_tokens(torch.randint(1, model.cfg.d_vocab, (n, length), generator=draw), "random")


@pytest.mark.parametrize("name", ["gpt2", "tiny_llama"])
@pytest.mark.parametrize("repeat", [1, 2])
def test_it_starts_as_the_layer(name: str, repeat: int, request: pytest.FixtureRequest) -> None:
    """Attention is the model's own (learned positions; rotary with grouped queries), and z̃ the half of what it says."""
    model: HookedModel = request.getfixturevalue(name)
    shape, layer = model.cfg, 1
    small = TrainConfig(d_sae=shape.n_heads * 4, k=3, n_tokens=1, batch_size=24)
    trained = train_lorsa(
        LorsaTrainConfig(small, layer, n_qk_heads=repeat * shape.n_heads), model=model, data=tokens_of(model)
    )
    sample, _ = looked_at(model, layer, tokens_of(model).tokens)
    lorsa = Lorsa(trained.lorsa.cfg)
    start_from_layer(lorsa, model, layer, sample, torch.Generator().manual_seed(0))
    s_in, s_out = sample.scales
    pattern = lorsa.pattern(sample.x[:1] * s_in)[0]
    torch.testing.assert_close(pattern, sample.pattern.repeat_interleave(repeat, 0), atol=2e-5, rtol=1e-4)
    pre = lorsa.pre_activations(sample.x * s_in)
    of_heads = torch.einsum("bthd,hdm->bthm", sample.z, model.W_O(layer))
    centred = of_heads - of_heads[sample.keep_BT].mean(0)
    expected = torch.einsum("bthm,hfm->bthf", centred, lorsa.W_O.view(shape.n_heads, -1, shape.d_model)).flatten(2)
    torch.testing.assert_close(pre, 0.5 * s_out * expected, atol=2e-4, rtol=1e-3)
    other = 1 - layer
    with pytest.raises(UnsupportedModelError, match="differs by"):  # another layer's queries and keys are not these
        start_from_layer(lorsa, model, other, sample, torch.Generator().manual_seed(0))


def test_llama3_frequencies_are_transformers() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    rope = {"rope_type": "llama3", "rope_theta": 5e5, **scaling}
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=512, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    ours = frequencies(LorsaRotary(32, 5e5, ntk_factor=8.0, ntk_low=1.0, ntk_high=4.0, old_context=64))
    torch.testing.assert_close(ours.float(), expected, rtol=1e-6, atol=0)
    model = load_model(LlamaForCausalLM(LlamaConfig(**_llama(rope))).eval())
    trained = train_lorsa(LorsaTrainConfig(SMALL, layer=0), model=model, data=tokens_of(model))
    assert trained.lorsa.cfg.rotary == LorsaRotary(8, 5e5, ntk_factor=8.0, ntk_low=1.0, ntk_high=4.0, old_context=64)


def _llama(rope: dict[str, Any] | None = None) -> dict[str, Any]:
    sizes = {
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return {**sizes, "num_key_value_heads": 1, "max_position_embeddings": 512, "rope_parameters": rope}


# -- training --------------------------------------------------------------------------------------------------------------

SMALL = TrainConfig(d_sae=24, k=3, n_tokens=24 * 12, batch_size=24, log_every=1, checkpoint_every=4, dead_after=48)


def test_it_learns_and_goes_on_bit_for_bit(gpt2: HookedModel, tmp_path: Path) -> None:
    data, config = tokens_of(gpt2), LorsaTrainConfig(SMALL, layer=1)
    whole = train_lorsa(config, model=gpt2, data=data, folder=tmp_path / "whole")
    assert whole.rows[-1]["mse"] < 0.9 * whole.rows[0]["mse"]
    assert max(row["l0"] for row in whole.rows) <= 3
    with pytest.raises(StopError):
        train_lorsa(config, model=gpt2, data=data, folder=tmp_path / "cut", track=StopAfter(6))
    again = train_lorsa(config, model=gpt2, data=data, folder=tmp_path / "cut", resume=True)
    assert again.lorsa.hash == whole.lorsa.hash
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in whole.rows]
    other = LorsaTrainConfig(SMALL, layer=0)
    with pytest.raises(ConfigError, match="has layer=1 and this run 0"):
        train_lorsa(other, model=gpt2, data=data, folder=tmp_path / "cut", resume=True)
    another_seed = TrainConfig(**{**vars(SMALL), "seed": 1})
    assert train_lorsa(LorsaTrainConfig(another_seed, layer=1), model=gpt2, data=data).lorsa.hash != whole.lorsa.hash


def test_folded_scales_change_nothing_but_units() -> None:
    lorsa, x = drawn(), torch.randn(1, 6, 6, dtype=torch.float64)
    before, chosen = lorsa(3.0 * x) / 5.0, lorsa.encode(3.0 * x) > 0
    lorsa.fold_scales(3.0, 5.0)
    torch.testing.assert_close(lorsa(x), before, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(lorsa.W_O.norm(dim=-1), torch.ones(8, dtype=torch.float64))
    assert torch.equal(lorsa.encode(x) > 0, chosen)


def test_what_it_cannot_stand_for_is_refused(gpt2: HookedModel, vit_mini: HookedModel) -> None:
    data = tokens_of(gpt2)

    def train(model: HookedModel = gpt2, layer: int = 1, **more: Any) -> Any:
        own = {name: more.pop(name) for name in ("n_qk_heads", "d_qk_head", "qk_start") if name in more}
        return train_lorsa(
            LorsaTrainConfig(TrainConfig(**{**vars(SMALL), **more}), layer, **own), model=model, data=data
        )

    with pytest.raises(UnsupportedModelError, match="attends in both directions"):
        train(vit_mini)
    with pytest.raises(LayerRangeError, match="layer 7 is out of range"):
        train(layer=7)
    with pytest.raises(ConfigError, match="d_sae=25 features do not divide among n_qk_heads=2; give 24"):
        train(d_sae=25)
    with pytest.raises(ConfigError, match="must be a multiple of its 2 heads"):
        train(n_qk_heads=3)
    with pytest.raises(ConfigError, match="widths, precision cannot be given with arch=lorsa"):
        train(widths=(24,), precision="tf32")
    with pytest.raises(ContextLengthError, match="a sequence of 8 is longer"):
        drawn()(torch.zeros(1, 8, 6))
    with pytest.raises(ConfigError, match="reads whole sequences"):
        drawn()(torch.zeros(5, 6))
    with pytest.raises(ConfigError, match="attlas train --arch lorsa"):
        train_sae(TrainConfig(hooks=("blocks.1.attn.hook_z",), arch="lorsa"), model=gpt2, data=data)
    assert train(n_qk_heads=3, d_qk_head=4, qk_start="random").lorsa.cfg.n_qk_heads == 3


def test_the_command_trains_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--d-sae", "48", "--k", "4", "--n-tokens", "64", "--seq-len", "32", "--batch-size", "64"]
    command = ["train", "--arch", "lorsa", "--layer", "3", *small, "-w", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    workspace = Workspace(tmp_path)
    (run,) = workspace.runs("lorsa")
    lorsa = load_lorsa(workspace.folder(run))
    assert (run.id, lorsa.hash) == (found["runs"][0], found["lorsa"]["hash"])
    assert (lorsa.cfg.hook_out, lorsa.cfg.layer, run.config["layer"]) == ("blocks.3.hook_attn_out", 3, 3)
    assert lorsa.cfg.n_parameters == sum(p.numel() for p in lorsa.parameters()) == run.summary["n_parameters"]
    few = ["--n-tokens", "64", "--seq-len", "32", "-w", str(tmp_path), "--json"]
    assert main(["eval", *few, "--n-bootstrap", "0"]) == 0  # the newest, without a name
    (measured,) = json.loads(capsys.readouterr().out)["results"].values()
    assert measured["summary"]["l0"] <= 4
    assert main(["features", "--sae", run.id, *few, "--n-top", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["hook"] == "blocks.3.hook_attn_out"
    for wrong, said in (
        ([*command, "--sweep-k", "2"], "--sweep-k is for autoencoders"),
        (["train", "--layer", "3"], "--layer is of --arch lorsa"),
        (["eval", "--sae", run.id, "--hook", "blocks.3.attn.hook_z"], "--hook does not apply to a Lorsa"),
        (["features", "match", "--sae", run.id, "--other", "x"], "is a Lorsa, which stands for an attention layer"),
    ):
        assert main([*wrong, "-w", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err
