"""Steering against brute force: no change at strength 0, whole passes without a cache, hand-made edits, a control as long."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from attlas.analyses.steering import SteerConfig, steer
from attlas.analyses.steering.changes import Steering
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError, NonFiniteError, PromptError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.saes import SAE, SAEConfig
from attlas.saes.architectures import create_sae

HOOK = "blocks.0.attn.hook_z"
PROMPT = torch.tensor([3, 9, 27, 20])


@pytest.fixture(scope="module")
def tiny() -> HookedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    return load_model(model)


def _sae(arch: str = "topk") -> SAE:
    torch.manual_seed(1)
    found = create_sae(SAEConfig(arch=arch, d_in=16, d_sae=16, k=3, hook_name=HOOK, n_heads=2, d_head=8))
    with torch.no_grad():  # an orthonormal dictionary: what is decoded is encoded again
        found.W_dec.copy_(torch.linalg.qr(torch.randn(16, 16))[0])
        found.W_enc.copy_(found.W_dec.T)
        found.b_enc.zero_()
        found.b_dec.zero_()
    return found.requires_grad_(False)


@pytest.fixture(scope="module")
def data() -> TokenDataset:
    draw = torch.Generator().manual_seed(0)
    return TokenDataset.from_tokens(torch.randint(1, 61, (9, 12), generator=draw), "random")


def _brute(model: HookedModel, edit: Callable[[Tensor], Tensor], first: int, n: int) -> list[int]:
    """Greedy, a whole pass a token, without a cache and without this wing."""

    def hook(z: Tensor, name: str) -> Tensor:
        out = z.clone()
        out[:, first:] = edit(z[:, first:])
        return out

    ids = PROMPT.tolist()
    for _ in range(n):
        with torch.no_grad(), model.hooks({HOOK: hook}):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(PROMPT) :]


def test_strength_zero_changes_nothing(tiny: HookedModel, data: TokenDataset) -> None:
    for config in (
        SteerConfig(features=(3, 5), strength=0.0, n_new=8, temperature=1.0, n_rows=9),
        SteerConfig(heads=("0.1", "1.0"), strength=0.0, n_new=8, temperature=1.0, n_rows=9),
    ):
        plain, steered, random = steer(tiny, PROMPT, config, _sae(), data).texts
        assert plain.ids == steered.ids == random.ids
        assert plain.probabilities == steered.probabilities == random.probabilities
        assert steered.prompt == random.prompt == (0.0, 0.0)
        assert steered.corpus is not None
        assert (steered.corpus[0][0], steered.corpus[1][0]) == (0.0, 0.0)
    assert len(set(plain.ids)) > 1


@pytest.mark.parametrize("positions", ["all", "generated"])
@pytest.mark.parametrize("mode", ["add", "clamp", "ablate"])
def test_text_is_that_of_whole_passes_with_a_manual_edit(tiny: HookedModel, mode: str, positions: str) -> None:
    sae = _sae()

    def edit(z: Tensor) -> Tensor:
        f = sae.encode(z.flatten(-2))
        for feature in (2, 7):
            change = {
                "add": torch.full_like(f[..., feature], 6.0),
                "clamp": 6.0 - f[..., feature],
                "ablate": -f[..., feature],
            }
            z = z + (change[mode][..., None] * sae.W_dec[feature]).unflatten(-1, (2, 8))
        return z

    config = SteerConfig(features=(2, 7), mode=mode, strength=6.0, positions=positions, n_new=10)
    plain, steered, _ = steer(tiny, PROMPT, config, sae).texts
    assert list(plain.ids) == _brute(tiny, lambda z: z, 1, 10)
    assert list(steered.ids) == _brute(tiny, edit, 1 if positions == "all" else 3, 10)
    if mode != "ablate":
        assert steered.ids != plain.ids


def test_heads_are_scaled(tiny: HookedModel) -> None:
    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        z[..., 1, :] *= 9
        return z

    _, steered, _ = steer(tiny, PROMPT, SteerConfig(heads=("0.1",), strength=8.0, n_new=8)).texts
    assert list(steered.ids) == _brute(tiny, edit, 1, 8)
    gone = Steering(tiny, None, "", SteerConfig(heads=("0.1",), mode="ablate"))
    z = torch.randn(1, 4, 2, 8)
    out = gone.hooks[HOOK](z, HOOK)
    assert out is not None
    assert torch.equal(out[:, 1:, 1], torch.zeros(1, 3, 8))
    assert torch.equal(out[:, :, 0], z[:, :, 0])
    assert torch.equal(out[:, 0], z[:, 0])  # the first position


def test_clamp_sets_what_is_encoded_again_and_keeps_the_rest() -> None:
    sae = _sae("standard")
    torch.manual_seed(0)
    model = load_model(GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=16, n_layer=1, n_head=2)).eval())
    z = torch.randn(2, 6, 2, 8)
    out = Steering(model, sae, HOOK, SteerConfig(features=(4,), mode="clamp", strength=2.5)).hooks[HOOK](z, HOOK)
    assert out is not None
    before, after = sae.encode(z.flatten(-2))[:, 1:], sae.encode(out.flatten(-2))[:, 1:]
    rest = [f for f in range(16) if f != 4]
    active = before[..., 4] > 0  # where it was silent, the part of z against it (the error term) is kept
    assert torch.allclose(after[..., 4][active], torch.tensor(2.5), atol=1e-5)
    assert torch.allclose(after[..., rest], before[..., rest], atol=1e-5)


@pytest.mark.parametrize("mode", ["add", "clamp", "ablate"])
def test_the_random_direction_is_as_long_in_the_same_heads(tiny: HookedModel, mode: str) -> None:
    sae, z = _sae(), torch.randn(2, 6, 2, 8)
    strength = {"strength": 4.0}
    config = SteerConfig(features=(1, 2), mode=mode, **strength)
    parts = [Steering(tiny, sae, HOOK, config, random).hooks[HOOK](z, HOOK) - z for random in (False, True)]  # type: ignore[operator]
    lengths = [part.flatten(2).norm(dim=-1) for part in parts]
    assert torch.allclose(*lengths, atol=1e-5)
    assert float(lengths[0][:, 1:].max()) > 0
    cosine = torch.cosine_similarity(parts[0].flatten(2)[:, 1:], parts[1].flatten(2)[:, 1:], dim=-1)
    assert float(cosine.abs().max()) < 0.9
    if mode == "clamp":
        return
    head = SteerConfig(heads=("0.1",), mode=mode, **strength)
    parts = [Steering(tiny, None, "", head, random).hooks[HOOK](z, HOOK) - z for random in (False, True)]  # type: ignore[operator]
    assert torch.allclose(parts[0].norm(dim=-1), parts[1].norm(dim=-1), atol=1e-5)
    assert float(parts[1][..., 0, :].abs().max()) == 0
    other = SteerConfig(heads=("0.1",), mode=mode, seed=1, **strength)
    again = [Steering(tiny, None, "", c, True).hooks[HOOK](z, HOOK) for c in (head, head, other)]
    assert torch.equal(again[0], again[1])  # type: ignore[arg-type]
    assert not torch.allclose(again[0], again[2])  # type: ignore[arg-type]


def test_kl_and_loss_are_those_of_float64(tiny: HookedModel, data: TokenDataset) -> None:
    sae = _sae()
    config = SteerConfig(features=(2,), strength=6.0, n_new=1, n_rows=9, batch_size=4)
    result = steer(tiny, PROMPT, config, sae, data)
    added = 6.0 * sae.W_dec[2].reshape(2, 8)

    def hook(z: Tensor, name: str) -> Tensor:
        out = z.clone()
        out[:, 1:] += added
        return out

    with torch.no_grad():
        p = torch.log_softmax(tiny(data.tokens).double(), -1)
        with tiny.hooks({HOOK: hook}):
            q = torch.log_softmax(tiny(data.tokens).double(), -1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    nxt = data.tokens[:, 1:, None]
    ce = (p[:, :-1].gather(-1, nxt) - q[:, :-1].gather(-1, nxt)).mean()
    found = result.texts[1].corpus
    assert found is not None
    assert found[0][0] == pytest.approx(float(kl), rel=1e-4)
    assert found[1][0] == pytest.approx(float(ce), rel=1e-3)
    assert found[0][1] < found[0][0] < found[0][2]
    told = result.summary()
    assert told["kl_steered"] == found[0][0]
    rows = result.tables()["steering"].to_pylist()
    assert [r["variant"] for r in rows] == ["unsteered", "steered", "random direction"]
    assert rows[0]["corpus_kl"] == 0.0


def test_sampling_follows_the_distribution(tiny: HookedModel) -> None:
    with torch.no_grad():
        p = torch.softmax(tiny(PROMPT[None])[0, -1] / 2.0, -1).numpy()
    drawn = [
        steer(tiny, PROMPT, SteerConfig(heads=("0.0",), strength=0.0, n_new=1, temperature=2.0, seed=s)).texts[0].ids[0]
        for s in range(150)
    ]
    common = np.argsort(-p)[:3]
    for token in common:
        share = drawn.count(int(token)) / len(drawn)
        assert abs(share - p[token]) < 4 * np.sqrt(p[token] * (1 - p[token]) / len(drawn)) + 0.01


def test_what_cannot_be_steered_is_said(tiny: HookedModel, vit_mini: HookedModel) -> None:
    for changes, why in (
        ({}, "nothing is to be changed"),
        ({"features": (1,), "mode": "raise"}, "mode 'raise'"),
        ({"features": (1,), "mode": "clamp", "strength": -1.0}, "never below 0"),
        ({"heads": ("0.1",), "mode": "clamp"}, "no activation to clamp"),
        ({"heads": ("x",)}, "'x' is no head"),
        ({"features": (1,), "strength": float("inf")}, "finite"),
    ):
        with pytest.raises(ConfigError, match=why):
            SteerConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no head 7\.0"):
        steer(tiny, PROMPT, SteerConfig(heads=("7.0",)))
    with pytest.raises(ConfigError, match="name one"):
        steer(tiny, PROMPT, SteerConfig(features=(1,)))
    with pytest.raises(ConfigError, match="16"):
        steer(tiny, PROMPT, SteerConfig(features=(16,)), _sae())
    with pytest.raises(PromptError, match="24 tokens"):
        steer(tiny, torch.ones(24, dtype=torch.long), SteerConfig(heads=("0.1",)))
    with pytest.raises(NonFiniteError, match="give less"):
        steer(tiny, PROMPT, SteerConfig(features=(1,), strength=1e38), _sae())
    with pytest.raises(UnsupportedModelError):
        steer(vit_mini, PROMPT, SteerConfig(heads=("0.1",)))
    long = steer(tiny, PROMPT, SteerConfig(heads=("0.1",), strength=0.0, n_new=99))
    assert len(long.texts[0].ids) == 20  # its context window is full
