"""Excluded positions never enter: not in training, capture, evaluation or features; and where the rule comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from attlas.analyses.features.config import MatchingConfig
from attlas.analyses.features.describe import FeaturesConfig, features
from attlas.analyses.features.survey import HeadSurveyConfig, head_survey
from attlas.analyses.pruning import Drop, SideEffectsConfig, drop_side_effects
from attlas.cli.capture import Args as CaptureArgs
from attlas.data.text import TokenDataset, load_tokens
from attlas.errors import ConfigError
from attlas.saes import SAE, EvalConfig, SAEConfig, TrainConfig, evaluate, load_sae, train_sae
from attlas.saes.architectures import create_sae
from attlas.saes.positions import Positions, positions_for
from attlas.saes.training.sources import model_source
from attlas.saes.training.store import store_source

if TYPE_CHECKING:
    from attlas.interp import HookedModel

HOOK = "blocks.1.attn.hook_z"
SMALL = TrainConfig(hooks=(HOOK,), d_sae=64, k=4, n_tokens=1024, batch_size=128, buffer_tokens=512, seq_len=32)


@pytest.fixture(scope="module")
def packed(gpt2_mini: HookedModel) -> TokenDataset:
    """Rows with separators in the middle: eos every ten tokens or so, and BOS in front."""
    tokens = load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=32, n_tokens=12 * 32).tokens.clone()
    tokens[:, 7::10] = gpt2_mini.tokenizer.eos_token_id
    return TokenDataset.from_tokens(tokens, "packed")


def kept_by_hand(data: TokenDataset, eos: int) -> list[tuple[int, int]]:
    return [
        (row, at) for row, tokens in enumerate(data.tokens.tolist()) for at, t in enumerate(tokens) if at and t != eos
    ]


@contextmanager
def poisoned(model: HookedModel, data: TokenDataset, value: float) -> Iterator[None]:
    """`capture` with huge activations at separators and BOS: what comes out must not change."""
    plain = model.capture
    eos = model.tokenizer.eos_token_id

    def capture(batch: torch.Tensor, names: object) -> dict[str, torch.Tensor]:
        cache = {name: x.clone() for name, x in plain(batch, names).items()}
        bad = batch == eos
        bad[:, 0] = True
        for x in cache.values():
            x[bad] = value
        return cache

    model.__dict__["capture"] = capture
    try:
        yield
    finally:
        del model.__dict__["capture"]


def random_sae(**more: object) -> SAE:
    sae = create_sae(SAEConfig(d_in=192, d_sae=64, k=4, hook_name=HOOK, **more))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(192, 64, generator=g) * 0.1)
        sae.W_dec.copy_(sae.W_enc.T)
    return sae


def test_training_and_capture_take_exactly_the_kept_rows(
    gpt2_mini: HookedModel, packed: TokenDataset, tmp_path: Path
) -> None:
    inputs, eos = packed, gpt2_mini.tokenizer.eos_token_id
    z = gpt2_mini.capture(packed.tokens, [HOOK])[HOOK].flatten(2)
    expected = torch.stack([z[row, at] for row, at in kept_by_hand(packed, eos)])
    config = dataclasses.replace(SMALL, exclude_tokens=("eos",), capture_batch=12, store=tmp_path / "store")
    for source in (model_source(gpt2_mini, inputs, [HOOK], config), store_source(gpt2_mini, inputs, [HOOK], config)):
        rows = source(0)[HOOK]
        assert len(rows) == len(expected) < packed.n_tokens - 12
        torch.testing.assert_close(rows.sum(0), expected.sum(0), atol=1e-3, rtol=1e-3)
    with poisoned(gpt2_mini, packed, 1e6):
        rows = model_source(gpt2_mini, inputs, [HOOK], config)(0)[HOOK]
    assert float(rows.abs().max()) < 1e3
    with pytest.raises(ConfigError, match="exclude_tokens"):
        store_source(gpt2_mini, inputs, [HOOK], dataclasses.replace(config, exclude_tokens=()))


def test_poison_changes_nothing(gpt2_mini: HookedModel, packed: TokenDataset) -> None:
    config = dataclasses.replace(SMALL, exclude_tokens=("eos",))
    clean = train_sae(config, model=gpt2_mini, data=packed).saes[HOOK]
    assert (clean.cfg.skip_positions, clean.cfg.exclude_tokens) == (1, ("eos",))
    assert (clean.cfg.data_name, clean.cfg.data_hash) == ("packed", packed.hash)
    how = EvalConfig(functional=False, n_bootstrap=0)
    told = FeaturesConfig(n_top=2, n_sample=4)
    survey = HeadSurveyConfig(n_features=3, least_active=1, n_draws=2)
    before = (
        evaluate(clean, gpt2_mini, packed, how),
        features(gpt2_mini, clean, packed, told).stream,
        head_survey(gpt2_mini, {HOOK: clean}, packed, survey),
    )
    with poisoned(gpt2_mini, packed, 1e6):
        again = train_sae(config, model=gpt2_mini, data=packed).saes[HOOK]
        after = (
            evaluate(clean, gpt2_mini, packed, how),
            features(gpt2_mini, clean, packed, told).stream,
            head_survey(gpt2_mini, {HOOK: clean}, packed, survey),
        )
    assert again.hash == clean.hash
    n = len(kept_by_hand(packed, gpt2_mini.tokenizer.eos_token_id))
    assert before[0].rows == after[0].rows
    assert before[0].rows[0]["n_tokens"] == before[1].n_tokens == before[2].n_tokens == n
    for name in ("count", "total", "maximum", "histogram"):
        assert torch.equal(getattr(before[1], name), getattr(after[1], name))
    np.testing.assert_array_equal(before[1].top.position, after[1].top.position)
    assert before[2].heads == after[2].heads


def test_splicing_leaves_excluded_positions_alone(gpt2_mini: HookedModel, packed: TokenDataset) -> None:
    """Cross-entropy with x̂ at kept positions only, against a hook written here; nothing kept is nothing lost."""
    sae, eos = random_sae(exclude_tokens=("eos",)), gpt2_mini.tokenizer.eos_token_id
    found = evaluate(sae, gpt2_mini, packed, EvalConfig(controls=(), n_bootstrap=0))
    keep = packed.tokens != eos
    keep[:, 0] = False

    def loss(change: object) -> float:
        hooks = {HOOK: lambda z, name: torch.where(keep[..., None, None], change(z), z)}  # type: ignore[operator]
        with torch.no_grad(), gpt2_mini.hooks(hooks):
            log_p = gpt2_mini(packed.tokens)[:, :-1].log_softmax(-1)
        return -log_p.gather(-1, packed.tokens[:, 1:, None]).mean().item()

    assert found.value("ce_spliced") == pytest.approx(loss(sae), abs=1e-4)
    assert found.value("ce_zero") == pytest.approx(loss(torch.zeros_like), abs=1e-4)


def test_the_rule_comes_from_the_sae_unless_it_is_given(gpt2_mini: HookedModel, vit_mini: HookedModel) -> None:
    eos = gpt2_mini.tokenizer.eos_token_id
    recorded = SAEConfig(d_in=192, d_sae=64, k=4, skip_positions=3, exclude_tokens=("eos", "17"))
    assert positions_for(gpt2_mini, sae=recorded) == Positions(3, (eos, 17), ("eos", "17"))
    assert positions_for(gpt2_mini, 0, (), recorded) == Positions(0)
    assert positions_for(gpt2_mini) == Positions(1)  # text begins with BOS
    assert positions_for(vit_mini) == Positions(0)  # CLS is what a classifier reads
    assert positions_for(vit_mini, sae=recorded.__class__(d_in=4, d_sae=4, k=1, exclude_tokens=("eos",))).exclude == ()
    foreign = SAEConfig(d_in=192, d_sae=64, k=4)
    assert positions_for(gpt2_mini, sae=foreign) == Positions(1)
    word = gpt2_mini.tokenizer.convert_ids_to_tokens(40)
    assert positions_for(gpt2_mini, exclude_tokens=(word,)).exclude == (40,)


def test_by_default_all_read_the_same_positions(gpt2_mini: HookedModel, packed: TokenDataset, tmp_path: Path) -> None:
    """Capture, training, evaluation, features and comparisons: all but BOS, where there is no record to follow."""
    text, sae = packed.take(4), random_sae()
    assert sae.cfg.skip_positions is None
    n = text.n_tokens - len(text)
    config = dataclasses.replace(SMALL, capture_batch=4)
    for name, source in (("model", model_source), ("store", store_source)):
        rows = source(gpt2_mini, text, [HOOK], dataclasses.replace(config, store=tmp_path / name))(0)
        assert len(rows[HOOK]) == n
    assert evaluate(sae, gpt2_mini, text, EvalConfig(controls=(), functional=False)).rows[0]["n_tokens"] == n
    assert features(gpt2_mini, sae, text, FeaturesConfig(null_draws=0)).n_tokens == n
    assert head_survey(gpt2_mini, {HOOK: sae}, text, HeadSurveyConfig(n_draws=2, least_active=1)).n_tokens == n
    assert (
        drop_side_effects(gpt2_mini, Drop(mlp=(3,)), text, {HOOK: sae}, SideEffectsConfig(())).tallies[HOOK].n_tokens
        == n
    )
    for kind in (
        TrainConfig,
        EvalConfig,
        FeaturesConfig,
        HeadSurveyConfig,
        MatchingConfig,
        SideEffectsConfig,
        CaptureArgs,
    ):
        default = next(field.default for field in dataclasses.fields(kind) if field.name == "skip_positions")
        assert default is None, f"{kind.__name__} has a rule of its own"


@pytest.mark.parametrize(
    ("token", "match"),
    [
        ("sep", r"has no sep token; it has bos"),
        ("99999999", "beyond the vocabulary"),
        ("several words of text", "is [0-9]+ tokens"),
    ],
)
def test_unknown_tokens(token: str, match: str, gpt2_mini: HookedModel) -> None:
    with pytest.raises(ConfigError, match=match):
        positions_for(gpt2_mini, exclude_tokens=(token,))


def test_images(vit_mini: HookedModel) -> None:
    n = vit_mini.cfg.n_prefix_tokens
    pixels = torch.zeros(2, 1, 4, 4)
    assert positions_for(vit_mini, n).mask(pixels, 9).sum() == 2 * (9 - n)
    with pytest.raises(ConfigError, match="would leave out patches"):
        positions_for(vit_mini, n + 1)
    with pytest.raises(ConfigError, match="no tokens to exclude"):
        positions_for(vit_mini, exclude_tokens=("eos",))


def test_nothing_left(gpt2_mini: HookedModel) -> None:
    rows = TokenDataset.from_tokens(torch.full((4, 32), gpt2_mini.tokenizer.eos_token_id), "eos only")
    with pytest.raises(ConfigError, match="no position is left"):
        train_sae(dataclasses.replace(SMALL, exclude_tokens=("eos",)), model=gpt2_mini, data=rows)
    with pytest.raises(ConfigError, match="no position is left"):
        evaluate(random_sae(exclude_tokens=("eos",)), gpt2_mini, rows, EvalConfig())


def test_the_record_survives_files(tmp_path: Path) -> None:
    sae = random_sae(skip_positions=0, exclude_tokens=("eos", "bos"), data_name="t.txt", data_hash="ab")
    sae.save(tmp_path)
    assert load_sae(tmp_path).cfg == sae.cfg
