"""Head survey and matching of autoencoders: on made-up ones whose answer is known, and against brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.analyses.features.matching import MatchingConfig, sae_matching
from attlas.analyses.features.matching_null import Read, null_dictionaries
from attlas.analyses.features.null import null_directions
from attlas.analyses.features.survey import HeadSurveyConfig, _beside, groups, head_survey
from attlas.cli import main
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel
from attlas.saes import SAE, SAEConfig
from attlas.saes.architectures import create_sae

HOOK = "blocks.3.attn.hook_z"


def made(W_dec: torch.Tensor, mean: torch.Tensor, k: int, hook: str = HOOK) -> SAE:
    """An autoencoder with these decoder rows, tied."""
    sae = create_sae(SAEConfig(d_in=W_dec.shape[1], d_sae=len(W_dec), k=k, hook_name=hook))
    with torch.no_grad():
        sae.W_dec.copy_(W_dec)
        sae.W_enc.copy_(W_dec.T)
        sae.b_dec.copy_(mean)
        sae.b_enc.zero_()
    return sae


@pytest.fixture(scope="module")
def x(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> torch.Tensor:
    with torch.no_grad():
        return gpt2_mini.capture(val_tokens.tokens, HOOK)[HOOK].flatten(-2)[:, 1:].flatten(0, 1)


# -- survey ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 9), st.data())
def test_groups_are_connected_components(n: int, data: st.DataObject) -> None:
    edges = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12))
    related = np.eye(n, dtype=bool)
    for a, b in edges:
        related[a, b] = related[b, a] = True
    label = groups(related)
    reach = np.linalg.matrix_power(related.astype(int), n) > 0
    assert ((label[:, None] == label) == reach).all()
    sizes = np.bincount(label)
    assert (sizes[:-1] >= sizes[1:]).all()


def test_a_head_of_one_direction_is_coherent(gpt2_mini: HookedModel, val_tokens: TokenDataset, x: torch.Tensor) -> None:
    """Head 1 writes one direction for all its features; head 4 writes ten at right angles, as random directions do."""
    torch.manual_seed(0)
    W = torch.zeros(20, 6, 32)
    W[:10, 1] = torch.randn(32)
    W[:10, 2] = 0.3 * torch.randn(10, 32)  # so that they differ as a whole
    W[10:, 4] = torch.linalg.qr(torch.randn(32, 32))[0][:10] * 5
    W[10:, 5] = 0.3 * torch.randn(10, 32)
    sae = made(torch.nn.functional.normalize(W.flatten(1), dim=-1), x.mean(0), 3)
    config = HeadSurveyConfig(n_features=8, least_active=1, min_phi=0.999, n_draws=20)
    result = head_survey(gpt2_mini, {HOOK: sae}, val_tokens, config)
    by_head = {row["head"]: row for row in result.heads}
    assert len(by_head) == 6
    assert by_head[1]["verdict"] == "coherent"
    assert by_head[1]["n_groups"] == 1
    assert by_head[1]["excess_high"] < by_head[1]["null_low"] - by_head[1]["null_groups"]
    assert by_head[4]["verdict"] == "as random"
    assert by_head[4]["n_groups"] == by_head[4]["n_features"] >= 5
    share, low, high = result.polysemantic()
    assert 0 <= share <= 1
    assert np.isnan([low, high]).all()  # six heads are too few for an interval
    for row in result.features:
        assert row["share"] == pytest.approx(
            float(W[row["feature"], row["head"]].norm() / W[row["feature"]].norm(dim=-1).sum()), abs=1e-5
        )


@pytest.mark.parametrize("layer", [0, 3])
def test_a_random_dictionary_is_as_random(gpt2_mini: HookedModel, val_tokens: TokenDataset, layer: int) -> None:
    """Its groups say nothing of a head."""
    hook = f"blocks.{layer}.attn.hook_z"
    mean = gpt2_mini.capture(val_tokens.tokens, hook)[hook].flatten(-2)[:, 1:].flatten(0, 1).mean(0)
    verdicts = []
    for seed in range(3):
        W = torch.randn(96, 192, generator=torch.Generator().manual_seed(seed))
        sae = made(torch.nn.functional.normalize(W, dim=-1), mean, 6, hook)
        config = HeadSurveyConfig(least_active=1, n_draws=5, n_dictionaries=40)
        verdicts += [row["verdict"] for row in head_survey(gpt2_mini, {hook: sae}, val_tokens, config).heads]
    assert np.mean([v == "as random" for v in verdicts]) >= 0.8
    assert "polysemantic" not in verdicts


def test_more_groups_than_random_is_polysemantic() -> None:
    null = np.array([1, 2] * 20)
    assert _beside(9, null, 0)["verdict"] == "polysemantic"
    assert _beside(9, null, 0)["excess"] == 7.5
    assert _beside(2, null, 0)["verdict"] == "as random"
    assert _beside(1, null + 7, 0)["verdict"] == "coherent"
    with pytest.raises(ConfigError, match="n_dictionaries 3 must be 20 or more"):
        HeadSurveyConfig(n_dictionaries=3)


def test_families_join_induction_features(gpt2_mini: HookedModel, val_tokens: TokenDataset, x: torch.Tensor) -> None:
    torch.manual_seed(0)
    sae = made(torch.nn.functional.normalize(torch.randn(40, 192), dim=-1), x.mean(0), 6)
    config = HeadSurveyConfig(least_active=1, n_draws=5)
    apart = head_survey(gpt2_mini, {HOOK: sae}, val_tokens, config)
    joined = head_survey(
        gpt2_mini, {HOOK: sae}, val_tokens, config, families={HOOK: dict.fromkeys(range(40), "induction")}
    )
    assert max(row["n_groups"] for row in apart.heads) > 1
    assert {row["n_groups"] for row in joined.heads} == {1}


def test_survey_refuses(vit_mini: HookedModel, gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    with pytest.raises(UnsupportedModelError, match="vision model"):
        head_survey(vit_mini, {}, val_tokens)
    sae = create_sae(SAEConfig(d_in=192, d_sae=8, k=2))
    with pytest.raises(ConfigError, match="no heads to survey"):
        head_survey(gpt2_mini, {"blocks.1.hook_attn_out": sae}, val_tokens)


# -- matching ----------------------------------------------------------------------------------------------------------


def test_a_permuted_copy_matches_wholly(gpt2_mini: HookedModel, val_tokens: TokenDataset, x: torch.Tensor) -> None:
    torch.manual_seed(2)
    W = torch.nn.functional.normalize(torch.randn(50, 192), dim=-1)
    order = torch.randperm(50)
    result = sae_matching(gpt2_mini, made(W, x.mean(0), 5), made(W[order], x.mean(0), 5), val_tokens)
    assert len(result.rows) > 30
    for row in result.rows:
        assert int(order[row["match"]]) == row["feature"]
        assert row["cosine"] == pytest.approx(1, abs=1e-5)
        assert row["correlation"] == pytest.approx(1, abs=1e-4)
        assert row["mutual"]
        assert row["n_missed"] == 0
        assert row["control_cosine"] < 0.5
        assert row["shuffled_cosine"] < 0.5
    summary = result.summary()
    assert (summary["same"], summary["same_control"], summary["same_shuffled"]) == (1, 0, 0)
    assert summary["beyond_control"] == 1
    assert summary["mean_correlation"] > 0.99 > 0.3 > summary["mean_correlation_control"]


def test_a_random_dictionary_matches_no_better_than_its_null(
    gpt2_mini: HookedModel, val_tokens: TokenDataset, x: torch.Tensor
) -> None:
    """Both with uneven head norms, so that directions alike in them would look like matches without the null."""
    norms = torch.rand(6, generator=torch.Generator().manual_seed(0)).expand(400, 6) ** 3 + 0.02
    first, second = (made(null_directions(norms, 32, seed), x.mean(0), 40) for seed in (1, 2))
    config = MatchingConfig(split_cosine=0.25)
    summary = sae_matching(gpt2_mini, first, second, val_tokens.take(4), config).summary()
    assert summary["n_active_features"] > 300
    assert summary["beyond_control"] == pytest.approx(0.05, abs=0.035)
    assert summary["mean_cosine"] == pytest.approx(summary["mean_cosine_control"], abs=0.02)
    assert summary["mean_cosine_control"] > 0.2
    assert summary["mean_correlation"] == pytest.approx(summary["mean_correlation_control"], abs=0.03)
    assert summary["mean_correlation_control"] > 0.05, "two directions of the same heads do fire together"
    for share in ("split", "absorbed"):
        assert summary[share] == pytest.approx(summary[f"{share}_control"], abs=0.08)
        assert summary[f"{share}_control"] > 0.1, "a share that a test could miss"


def test_null_dictionaries_keep_what_they_should(gpt2_mini: HookedModel, x: torch.Tensor) -> None:
    """Head norms of both rows, the angle between them in every head, and how often each feature fires; no direction."""
    torch.manual_seed(5)
    sae = made(torch.nn.functional.normalize(torch.randn(60, 192), dim=-1), x.mean(0), 7)
    sae.W_enc.data += 0.05 * torch.randn_like(sae.W_enc)
    sae.b_enc.data[3] = -100  # never active
    read = Read.of(sae, x)
    count = (sae.encode(x) > 0).sum(0)
    control, other = null_dictionaries(sae, 6, read, seed=0)
    dec, enc = (w.detach().unflatten(-1, (6, 32)) for w in (sae.W_dec, sae.W_enc.T))
    null_dec, null_enc = (w.unflatten(-1, (6, 32)) for w in (control.W_dec, control.directions))
    for a, b, c, d in (
        (dec, dec, null_dec, null_dec),
        (enc, enc, null_enc, null_enc),
        (dec, enc, null_dec, null_enc),
    ):
        torch.testing.assert_close((c * d).sum(-1), (a * b).sum(-1), rtol=1e-4, atol=1e-5)
    assert torch.nn.functional.cosine_similarity(control.W_dec, sae.W_dec).abs().mean() < 0.1
    assert torch.equal(other.W_dec.sort(-1).values, sae.W_dec.sort(-1).values)
    torch.testing.assert_close((other.W_dec * other.directions).sum(-1), (sae.W_dec * sae.W_enc.T).sum(-1))
    for null in (control, other):
        fired = (null.encode(read) > 0).sum(0)
        assert torch.equal(fired, count)
        assert fired[3] == 0


def test_splitting_and_absorption_against_brute_force(
    gpt2_mini: HookedModel, val_tokens: TokenDataset, x: torch.Tensor
) -> None:
    """Each feature of the first becomes two of the second, a little to either side."""
    torch.manual_seed(3)
    W = torch.nn.functional.normalize(torch.randn(24, 192), dim=-1)
    aside = torch.nn.functional.normalize(torch.randn(24, 192), dim=-1)
    split = torch.nn.functional.normalize(torch.cat([W + 0.6 * aside, W - 0.6 * aside]), dim=-1)
    first, second = made(W, x.mean(0), 4), made(split, x.mean(0), 4)
    result = sae_matching(gpt2_mini, first, second, val_tokens, MatchingConfig(split_cosine=0.6))
    assert result.summary()["split"] == 1
    with torch.no_grad():
        f, g = first.encode(x), second.encode(x)
    assert result.n_tokens == len(x)
    cosines = W.double() @ split.double().T
    missed_in_all = 0
    for row in result.rows:
        a, b = row["feature"], row["match"]
        assert b == int(cosines[a].argmax())
        on, silent = f[:, a] > 0, g[:, b] <= 0
        assert row["n_active"] == int(on.sum())
        assert row["n_missed"] == int((on & silent).sum())
        pair = torch.nonzero(cosines[a] >= 0.6).flatten()
        assert row["n_split"] == len(pair) == 2
        instead = (on & silent & (g[:, pair] > 0).any(1)).sum()
        if row["n_missed"]:
            assert row["absorbed"] == pytest.approx(int(instead) / row["n_missed"])
        missed_in_all += row["n_missed"]
        if on.any() and (g[:, b] > 0).any():
            expected = np.corrcoef(f[:, a].double().numpy(), g[:, b].double().numpy())[0, 1]
            assert row["correlation"] == pytest.approx(expected, abs=1e-6)
    assert missed_in_all > 0
    assert result.summary()["split_control"] == 0


def test_matching_refuses(gpt2_mini: HookedModel, val_tokens: TokenDataset, x: torch.Tensor) -> None:
    sae = made(torch.eye(192)[:9], x.mean(0), 2)
    with pytest.raises(ConfigError, match="d_in 192 and 96"):
        sae_matching(gpt2_mini, sae, create_sae(SAEConfig(d_in=96, d_sae=8, k=2)), val_tokens)
    other = made(torch.eye(192)[:9], x.mean(0), 2, hook="blocks.1.attn.hook_z")
    with pytest.raises(ConfigError, match="both must sit on the same hook"):
        sae_matching(gpt2_mini, sae, other, val_tokens)
    with pytest.raises(ConfigError, match="split_cosine 1"):
        MatchingConfig(split_cosine=1.0)


def test_command_line(tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(tmp_path_factory.mktemp("w"))]
    for seed in ("0", "1"):
        train = ["--hooks", HOOK, "--d-sae", "64", "--n-tokens", "8192", "--seed", seed]
        assert main(["train", "--model", "gpt2-mini", *train, *where, "--json"]) == 0
    runs = [json.loads(line)["runs"][0] for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    small = ["--n-tokens", "4096", "--json"]
    assert main(["features", "survey", *where, *small]) == 0
    survey = json.loads(capsys.readouterr().out)
    assert survey["n_heads"] == 6
    assert main(["features", "match", "--sae", runs[0], "--other", runs[1], *where, *small]) == 0
    matched = json.loads(capsys.readouterr().out)
    assert matched["d_sae"] == [64, 64]
    assert matched["mean_cosine"] > matched["mean_cosine_control"]
    assert main(["features", "match", *where]) == 2
    assert "--other" in capsys.readouterr().err
