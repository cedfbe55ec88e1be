"""Families against their null: a random dictionary has none, planted induction features keep theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from attlas.analyses.features.causal import Rerun, Tokens, paired_interval
from attlas.analyses.features.directions import (
    MIN_EXAMPLES,
    Examples,
    Sample,
    encoder_directions,
    feature_examples,
    fire,
    offsets,
    sample,
    score,
    source_shares,
)
from attlas.analyses.features.families import CHECKS, FamilyScore, _reach, families
from attlas.analyses.features.null import (
    NullConfig,
    NullScores,
    Profiles,
    benjamini_hochberg,
    null_directions,
    null_scores,
    profiles,
    tail_p,
)
from attlas.data.progress import no_track
from attlas.data.text import TokenDataset, load_tokens
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.saes import SAE, SAEConfig
from attlas.saes.architectures import create_sae
from attlas.saes.evaluation.controls import shuffled
from attlas.saes.positions import Positions

HOOK = "blocks.3.attn.hook_z"
CONFIG = NullConfig(n_draws=50, n_tokens=4_096)


@pytest.fixture(scope="module")
def text(gpt2_mini: HookedModel) -> TokenDataset:
    return load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=128, n_tokens=8_192, seed=0)


def dictionary(model: HookedModel, text: TokenDataset, seed: int, d_sae: int = 160) -> SAE:
    """Unit directions at random about the mean activation."""
    generator = torch.Generator().manual_seed(seed)
    sae = create_sae(SAEConfig(d_in=192, d_sae=d_sae, k=6, hook_name=HOOK, model_name=model.name))
    with torch.no_grad():
        sae.b_dec.copy_(model.capture(text.tokens[:16], HOOK)[HOOK].flatten(-2)[:, 1:].flatten(0, 1).mean(0))
        rows = torch.randn(d_sae, 192, generator=generator)
        sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def labels(found: dict[int, FamilyScore]) -> float:
    """Share of features with a label."""
    return float(np.mean([s.label != "unassigned" for s in found.values()]))


def test_shares_of_made_up_attribution() -> None:
    tokens = torch.tensor([[0, 5, 6, 7, 8, 9, 5, *range(20, 60)]])

    def shares(at: dict[int, float], position: int) -> dict[str, float]:
        by_source = torch.zeros(1, 47)
        for source, value in at.items():
            by_source[0, source] = value
        found, each = source_shares(by_source, tokens, torch.tensor([position]))
        assert float(each.sum()) == pytest.approx(float(not found["local"].isnan()))
        return {name: float(value) for name, value in found.items()}

    assert shares({2: 1.0}, 6) == {"induction": 1.0, "local": 1.0, "long_range": 0.0}  # after the earlier 5, and near
    assert shares({3: 2.0}, 46) == {"induction": 0.0, "local": 0.0, "long_range": 1.0}
    assert shares({2: 1.0, 4: 3.0, 5: -9.0}, 6)["induction"] == pytest.approx(0.25)  # negative parts do not count
    assert np.isnan(shares({0: 5.0}, 46)["local"])  # the first position is left out


def test_directions_fire_on_as_many_tokens_as_they_are_told() -> None:
    torch.manual_seed(0)
    pre, bar = torch.randn(3, 5, 40), torch.rand(5, 40)
    n_active = torch.tensor([3, 17, 200])
    margin = (pre - bar).flatten(1)
    assert (margin > offsets(margin, n_active)[:, None]).sum(1).tolist() == [3, 17, 199]  # never quite all
    found = fire(pre, bar, n_active, 2)
    for p in range(3):
        above = (pre[p] - bar) > offsets(margin, n_active)[p]
        best = sorted(((float(pre[p, s][above[s]].max()), s) for s in range(5) if above[s].any()), reverse=True)[:2]
        mine = found.direction == p
        assert found.sequence[mine].tolist() == [s for _, s in best]
        for s, t, a in zip(found.sequence[mine], found.position[mine], found.activation[mine], strict=True):
            assert float(a) == pytest.approx(float(pre[p, s, t] - offsets(margin, n_active)[p]), abs=1e-5)


def test_null_directions_have_the_features_head_norms() -> None:
    norms = torch.rand(4, 5, 6) + 0.1
    drawn = null_directions(norms, 32, 3)
    torch.testing.assert_close(drawn.unflatten(-1, (6, 32)).norm(dim=-1), norms)
    n_active = np.array([8, 500] * 20)
    groups = profiles(norms[0, :1].expand(40, 6), n_active, np.arange(40) != 4, NullConfig(10, 9))
    assert groups.of[4] == -1  # left out
    assert groups.of[0] != groups.of[1]
    assert groups.members.shape == (2, 10)
    for c, members in enumerate(groups.members):
        assert set(members) <= set(np.flatnonzero(groups.of == c))


def test_p_is_uniform_where_the_null_is_true() -> None:
    generator = np.random.default_rng(0)
    level = generator.uniform(0.1, 0.6, 20)
    null = np.clip(level[:, None] + 0.05 * generator.standard_normal((20, 200)), 0, 1)
    of = generator.integers(20, size=2000)
    scores = np.clip(level[of] + 0.05 * generator.standard_normal(2000), 0, 1)
    made = NullScores({"local": scores}, {"local": null}, Profiles(of, null), None, None)  # type: ignore[arg-type]
    p = made.p("local")
    for level_ in (0.5, 0.1, 0.01):
        assert np.mean(p <= level_) == pytest.approx(level_, abs=4 * (level_ / 2000) ** 0.5 + 0.003)
    assert (benjamini_hochberg(p) <= 0.05).sum() <= 2
    np.testing.assert_allclose(made.mean("local"), null.mean(1)[of])


def test_p_beyond_the_null_is_that_of_its_tail() -> None:
    generator = np.random.default_rng(1)
    null = np.sort(generator.standard_normal(12_800))
    z = np.array([3.0, 3.9, 4.2, 8.0, np.nan])
    p = tail_p(z, null)
    assert (np.abs(np.log(p[:3] / stats.norm.sf(z[:3]))) < np.log(6)).all()
    assert p[3] == pytest.approx(0.1 / 12_801)
    assert np.isnan(p[4])
    assert (np.diff(p[:4]) < 0).all()
    assert tail_p(z[3:4], null[:100]) == pytest.approx(1 / 101)  # too few to fit


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_and_shuffled_dictionaries_have_no_families(
    gpt2_mini: HookedModel, text: TokenDataset, seed: int
) -> None:
    sae = dictionary(gpt2_mini, text, seed)
    for other in (sae, shuffled(planted(gpt2_mini, text, sae)[0], seed)):
        found = families(gpt2_mini, other, text, HOOK, CONFIG)
        assert len(found) > 100
        assert labels(found) <= 0.05


def planted(model: HookedModel, text: TokenDataset, sae: SAE, n: int = 30) -> tuple[SAE, list[int]]:
    """The dictionary with features that tell one token's value from others' in the induction heads, 3.0 and 3.4.

    Their slices of the other heads have the same norm, and read the directions in which least happens there.
    """
    v = model.capture(text.tokens, HOOK.replace("hook_z", "hook_v"))[HOOK.replace("hook_z", "hook_v")][:, 1:]
    tokens = text.tokens[:, 1:]
    ids, counts = tokens.unique(return_counts=True)
    read = v[:, :, [0, 4]].flatten(2)
    centred = read.flatten(0, 1) - read.flatten(0, 1).mean(0)
    covariance = centred.T @ centred / len(centred)
    quiet = torch.stack([torch.linalg.eigh(torch.cov(v[:, :, h].flatten(0, 1).T))[1][:, 0] for h in range(6)])
    other = create_sae(sae.cfg)
    other.load_state_dict(sae.state_dict())
    with torch.no_grad():
        for i, token in enumerate(ids[counts.argsort(descending=True)][15 : 15 + n]):
            apart = read[tokens == token].mean(0) - read.flatten(0, 1).mean(0)
            w = torch.linalg.solve(covariance + 0.1 * covariance.diagonal().mean() * torch.eye(64), apart)
            direction = quiet.clone()
            direction[[0, 4]] = torch.nn.functional.normalize(w.view(2, 32), dim=1)
            other.W_enc[:, i] = direction.flatten() / direction.norm()
            other.W_dec[i] = other.W_enc[:, i]
    return other, list(range(n))


def test_planted_induction_features_keep_their_label(gpt2_mini: HookedModel, text: TokenDataset) -> None:
    """And the random directions beside them have none."""
    sae, mine = planted(gpt2_mini, text, dictionary(gpt2_mini, text, 0))
    found = families(gpt2_mini, sae, text, HOOK, NullConfig(n_draws=260, n_tokens=8_192))
    kept = [f for f, s in found.items() if s.label == "induction"]
    assert len(kept) >= 3
    assert set(kept) <= set(mine)
    for f in kept:
        s = found[f]
        assert s.q["induction"] <= 0.05
        assert s.score["induction"] > s.null["induction"] + 0.2
        assert s.source_entropy < s.source_entropy_null
        assert 0 < s.fall_low < s.fall < s.fall_high
    rest = [s.label for f, s in found.items() if f not in mine]
    assert "induction" not in rest
    row = found[kept[0]].row()
    assert row["induction_excess"] == pytest.approx(row["induction"] - row["induction_null"])


# -- changes of the text -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read(gpt2_mini: HookedModel, text: TokenDataset) -> tuple[SAE, Sample]:
    sae = dictionary(gpt2_mini, text, 3, 40)
    return sae, sample(
        gpt2_mini, sae, text.take(8), HOOK, n_tokens=8 * 128, n_top=3, batch_size=4, positions=Positions(1)
    )


def test_changes_are_what_they_say(text: TokenDataset) -> None:
    changes = Tokens(text.tokens.numpy())
    row = text.tokens[5].numpy()
    position = next(t for t in range(60, 128) if (row[:t] == row[t]).sum() >= 3)
    earlier = np.flatnonzero(row[:position] == row[position])
    generator = np.random.default_rng(0)

    broken = changes.copies(row, position, generator)
    assert np.flatnonzero(broken != row).tolist() == earlier.tolist()
    assert not (broken[:position] == row[position]).any()

    control = np.flatnonzero(changes.control(row, position, generator) != row)
    assert len(control) == len(earlier)
    assert not set(control) & (set(earlier) | set(earlier + 1) | {0, position})

    far = changes.far(row, position, generator)
    assert (far[position - 7 :] == row[position - 7 :]).all()
    assert (far[1 : position - 7] != row[1 : position - 7]).mean() > 0.5

    near = changes.near(row, position, generator)
    assert (near[: position - 7] == row[: position - 7]).all()
    assert (near[position:] == row[position:]).all()
    assert sorted(near) == sorted(row)

    ids, counts = text.tokens[:, 1:].unique(return_counts=True)
    frequent = int(ids[counts.argmax()])
    count = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert count[changes.like(frequent, frequent, generator)] > 20


@torch.no_grad()
def test_kept_is_the_pre_activation_after_the_change(gpt2_mini: HookedModel, read: tuple[SAE, Sample]) -> None:
    """Against every changed sequence run on its own, in float64 from z on."""
    sae, found = read
    examples = feature_examples(found.stream)
    rerun = Rerun(gpt2_mini, sae, HOOK, found, batch_size=5, seed=7)

    def reverse(row: np.ndarray, position: int, _generator: np.random.Generator) -> np.ndarray:
        return np.concatenate([row[:1], row[1:position][::-1], row[position:]])

    kept = rerun.kept(examples, encoder_directions(sae), reverse)
    for i in range(0, len(examples), 9):
        f, s, t = (int(v[i]) for v in (examples.direction, examples.sequence, examples.position))
        changed = torch.from_numpy(reverse(found.tokens[s].numpy(), t, np.random.default_rng(0)))
        z = gpt2_mini.capture(changed[None], HOOK)[HOOK].flatten(-2)[0, t].double()
        pre = float((z - sae.b_dec.double()) @ sae.W_enc[:, f].double() + sae.b_enc[f].double())
        assert kept[i] == pytest.approx(max(0.0, pre) / float(examples.activation[i]), abs=1e-4)


def test_the_strongest_of_each_direction_are_chosen() -> None:
    draw = torch.Generator().manual_seed(0)
    direction = torch.randint(0, 5, (60,), generator=draw)
    activation = torch.randint(1, 9, (60,), generator=draw).float()  # with ties
    rows = Examples(direction, torch.arange(60), torch.zeros(60, dtype=torch.long), activation)
    found = rows.strongest(3)
    for d in range(5):
        mine = [(float(a), i) for i, (of, a) in enumerate(zip(direction, activation, strict=True)) if of == d]
        wanted = sorted(i for _, i in sorted(mine, key=lambda row: (-row[0], row[1]))[:3])
        assert found.sequence[found.direction == d].tolist() == wanted


def test_a_check_and_its_null_are_over_equally_many_examples(
    gpt2_mini: HookedModel, read: tuple[SAE, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, found = read
    null = null_scores(gpt2_mini, sae, found, HOOK, NullConfig(n_draws=4, n_tokens=4_096), n_top=12, batch_size=16)
    counts: list[int] = []

    def kept(_self: Rerun, examples: Examples, *_args: object, **_more: object) -> np.ndarray:
        counts.append(int(examples.direction.bincount().max()))
        return np.ones(len(examples))

    monkeypatch.setattr(Rerun, "kept", kept)
    assert int(null.examples.direction.bincount().max()) > 3
    scored = null.profiles.of >= 0
    columns = {name: np.full(len(scored), np.nan) for name in CHECKS}
    rerun = Rerun(gpt2_mini, sae, HOOK, found, batch_size=5, seed=7)
    _reach(columns, {"local": scored, "long_range": scored}, rerun, null, 3, no_track)
    assert counts == [3, 3, 3, 3]  # features and null, far and near


def test_scores_are_of_the_features_attribution(gpt2_mini: HookedModel, read: tuple[SAE, Sample]) -> None:
    """Against attention and values written out, for one feature."""
    sae, found = read
    examples = feature_examples(found.stream)
    scores = score(gpt2_mini, HOOK, found.tokens, examples, encoder_directions(sae), batch_size=3)
    f = int(torch.bincount(examples.direction).argmax())
    local = []
    for s, t in zip(
        examples.sequence[examples.direction == f], examples.position[examples.direction == f], strict=True
    ):
        prefix = HOOK.removesuffix("hook_z")
        cache = gpt2_mini.capture(found.tokens[s][None], [f"{prefix}hook_pattern", f"{prefix}hook_v"])
        v = cache[f"{prefix}hook_v"][0].double()
        reads = torch.einsum("she,he->hs", v, sae.W_enc[:, f].double().view(6, 32))
        by_source = (cache[f"{prefix}hook_pattern"][0, :, t].double() * reads).sum(0).clamp_min(0)
        by_source[0] = 0
        local.append(float(by_source[max(0, t - 7) : t + 1].sum() / by_source.sum()))
    assert len(local) >= MIN_EXAMPLES
    assert scores["local"][f] == pytest.approx(np.mean(local), abs=1e-4)


def test_intervals_of_pairs_are_students() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 8)
    mean, low, high = paired_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), expected.low, expected.high))
    assert np.isnan(paired_interval(values[:2])).all()


def test_bad_configuration() -> None:
    with pytest.raises(ConfigError, match="n_draws 0"):
        NullConfig(n_draws=0)
