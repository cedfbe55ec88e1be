"""Going on with other weights or data is refused; using an SAE on another model says so in one line."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from attlas.analyses.features.describe import FeaturesConfig, features
from attlas.analyses.features.matching import sae_matching
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset, load_tokens
from attlas.errors import ConfigError
from attlas.interp import load_model
from attlas.saes import SAE, EvalConfig, SAEConfig, SweepConfig, TrainConfig, evaluate, sweep_saes, train_sae
from attlas.saes.architectures import create_sae
from attlas.saes.identity import check_sae, fingerprint

if TYPE_CHECKING:
    from attlas.interp import HookedModel

from .stopped import StopAfter, StopError

HOOK = "blocks.0.attn.hook_z"
SMALL = TrainConfig(
    hooks=(HOOK,), d_sae=32, k=2, n_tokens=1024, batch_size=128, buffer_tokens=512, seq_len=32, checkpoint_every=2
)


@pytest.fixture
def own_model() -> HookedModel:
    return load_model("gpt2-mini", device="cpu")


def texts(model: HookedModel, seed: int) -> TokenDataset:
    return load_tokens("embedded:val", model.tokenizer, seq_len=32, n_tokens=16 * 32, seed=seed)


@pytest.mark.parametrize("sweep", [False, True])
def test_resume_on_other_data_or_weights_is_refused(sweep: bool, own_model: HookedModel, tmp_path: Path) -> None:
    def run(data: TokenDataset, resume: bool, track: Track = no_track) -> object:
        how = {"model": own_model, "folder": tmp_path, "resume": resume, "track": track}
        if sweep:
            quick = EvalConfig(controls=(), functional=False, n_bootstrap=0)
            return sweep_saes(SweepConfig(SMALL, k=(1, 2)), data=data, val=data, evaluation=quick, **how)
        return train_sae(SMALL, data=data, **how)

    first, second = texts(own_model, 0), texts(own_model, 1)
    with pytest.raises(StopError):
        run(first, False, StopAfter(4))
    with pytest.raises(
        ConfigError, match=rf"has data='{first.hash}' and this run '{second.hash}'; start without resume"
    ):
        run(second, True)
    with torch.no_grad():
        own_model.hf.transformer.wpe.weight.mul_(1.5)
    with pytest.raises(ConfigError, match=r"has model weights='.*' and this run '.*'; start without resume"):
        run(first, True)
    with torch.no_grad():
        own_model.hf.transformer.wpe.weight.div_(1.5)
    run(first, True)


def test_fingerprint_is_of_the_weights_in_memory(own_model: HookedModel) -> None:
    before = fingerprint(own_model)
    assert before == fingerprint(load_model("gpt2-mini", device="cpu"))
    with torch.no_grad():
        own_model.hf.transformer.h[0].ln_1.bias[3] += 1e-4
    assert fingerprint(own_model) != before


def sae_of(**facts: object) -> SAE:
    sae = create_sae(SAEConfig(**{"d_in": 192, "d_sae": 8, "k": 2, "hook_name": HOOK, **facts}))
    torch.nn.init.normal_(sae.W_enc)
    torch.nn.init.normal_(sae.W_dec)
    return sae


def test_another_model_is_a_warning_everywhere(gpt2_mini: HookedModel) -> None:
    sae, data = sae_of(model_name="other", model_hash="0" * 16), texts(gpt2_mini, 0).take(2)
    line = rf"'{HOOK}' \(d_in 192\) was trained on other \(0{{16}}\), this is gpt2-mini \({gpt2_mini.weight_hash}\)"
    with pytest.warns(UserWarning, match=line):
        evaluate(sae, gpt2_mini, data, EvalConfig(controls=(), functional=False, n_bootstrap=0))
    with pytest.warns(UserWarning, match=line):
        features(gpt2_mini, sae, data, FeaturesConfig(n_top=1, n_sample=1))
    with pytest.warns(UserWarning, match=line):
        sae_matching(gpt2_mini, sae, sae, data)
    with pytest.warns(UserWarning, match="weights unknown"):
        check_sae(sae_of(model_name="meta/llama-3"), gpt2_mini)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sae(sae_of(model_name="gpt2-mini", model_hash=gpt2_mini.weight_hash), gpt2_mini)
        check_sae(sae_of(), gpt2_mini)


def test_saes_of_one_head_are_refused(gpt2_mini: HookedModel) -> None:
    """On [batch, position, head, d_head] they would read every head as a token of its own."""
    one, data = sae_of(d_in=32), texts(gpt2_mini, 0).take(2)
    line = rf"d_in=32 and the activations have 192 at '{HOOK}'.*an SAE of one head"
    with pytest.raises(ConfigError, match=line):
        features(gpt2_mini, one, data)
    with pytest.raises(ConfigError, match=line):
        evaluate(one, gpt2_mini, data)


def test_a_features_checkpoint_of_other_weights_is_refused(own_model: HookedModel, tmp_path: Path) -> None:
    from attlas.analyses.features import describe as module

    sae, data = sae_of(), texts(own_model, 0).take(4)
    config, path = FeaturesConfig(batch_size=1, n_top=1, n_sample=1), tmp_path / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SAVE_EVERY", 2)
        patch.setattr(module, "choose", lambda *_: (_ for _ in ()).throw(StopError))
        with pytest.raises(StopError):
            features(own_model, sae, data, config, checkpoint=path)
    with pytest.raises(ConfigError, match="state of another pass"):
        features(own_model, sae, data, dataclasses.replace(config, exclude_tokens=("eos",)), checkpoint=path)
    with torch.no_grad():
        own_model.hf.transformer.wpe.weight.mul_(1.5)
    with pytest.raises(ConfigError, match="state of another pass"):
        features(own_model, sae, data, config, checkpoint=path)
