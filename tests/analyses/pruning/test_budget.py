"""Orders, budgets and drop curves against what they promise, counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.common.losses import quality
from attlas.analyses.pruning.budget import Budget, kv_bytes_per_token, n_parameters, select
from attlas.analyses.pruning.curve import DropCurveConfig, DropCurveResult, drop_curve
from attlas.analyses.pruning.orders import last_first, random_order, random_sets, ranked
from attlas.analyses.pruning.scores import Scores, iterative_order
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.interp.drop import Drop, masked, unit_name, units


def test_curve_equals_losses_of_masked_models(gpt2_mini: HookedModel, val_tokens: TokenDataset, tmp_path: Path) -> None:
    data = val_tokens.take(3)
    config = DropCurveConfig(("attn", "joint", "head"), (1, 2), ("ranked", "random", "last", "reversed"), n_random=2)
    result = drop_curve(gpt2_mini, val_tokens.take(2), data, config)
    rows = result.table().to_pylist()
    assert len(rows) == 1 + 3 * 2 * (3 + 2)
    assert {r["low"] for r in rows} == {None}  # three sequences
    with torch.no_grad():
        dense = gpt2_mini.cross_entropy(data.tokens).double().mean().item()
        for row in rows[:: len(rows) // 6]:
            parts = [name.split(".") for name in row["dropped"]]
            drop = Drop(
                tuple(int(p[1]) for p in parts if p[0] == "attn"),
                tuple(int(p[1]) for p in parts if p[0] == "mlp"),
                heads=tuple((int(p[1]), int(p[2])) for p in parts if p[0] == "head"),
            )
            with masked(gpt2_mini, drop):
                loss = gpt2_mini.cross_entropy(data.tokens).double().mean().item()
            assert abs(row["loss"] - loss) < 1e-5
            assert abs(row["delta"] - (loss - dense)) < 2e-5
    ordered = {r["order"]: r["dropped"] for r in rows if r["target"] == "attn" and r["n_dropped"] == 1}
    assert ordered["ranked"] != ordered["reversed"]
    assert ordered["last"] == ["attn.3"]
    run = result.save(Workspace(tmp_path / "w"), gpt2_mini.ref, data.ref)
    assert Workspace(tmp_path / "w").read_table(run, "drop_curve").num_rows == len(rows)
    assert len(result.plot().data) == 12


def test_random_draws_are_distinct_and_never_the_ranking(tiny_llama: HookedModel) -> None:
    """Of three attention layers only two sets are left at each count; of eighteen heads twenty of many."""
    data = TokenDataset.from_tokens(torch.randint(0, 101, (10, 12)), "random")
    config = DropCurveConfig(("attn", "head"), (1, 2), ("ranked", "random"), random_share=0.8)
    result = drop_curve(tiny_llama, data.take(2), data, config)
    n_draws = {("attn", 1): 2, ("attn", 2): 2, ("head", 1): 17, ("head", 2): 20}
    control = {(r["target"], r["n_dropped"]): r for r in result.control}
    for (target, n), expected in n_draws.items():
        mine = [r for r in result.rows if (r["target"], r["n_dropped"]) == (target, n)]
        sets = [frozenset(r["dropped"]) for r in mine if r["order"] == "random"]
        (first,) = [r for r in mine if r["order"] == "ranked"]
        assert len(sets) == len(set(sets)) == expected
        assert frozenset(first["dropped"]) not in sets
        row = control[target, n]
        assert row["n_draws"] == expected
        assert row["n_possible"] == math.comb(3 if target == "attn" else 18, n) - 1
        deltas = [r["delta"] for r in mine if r["order"] == "random"]
        assert row["random_median"] == pytest.approx(np.median(deltas))
        assert (row["random_min"], row["random_max"]) == pytest.approx((min(deltas), max(deltas)))
        assert row["excess"] == pytest.approx(row["random_median"] - row["delta"])
        assert row["low"] < row["excess"] < row["high"]
        assert (first["n_sequences"], row["n_sequences"]) == (10, 8)
        assert first["low"] < first["delta"] < first["high"]
    losses = []
    for layers in ((), tuple(int(name[5:]) for name in first_of(result, "attn", 1))):
        with torch.no_grad(), masked(tiny_llama, Drop(attn=layers)):
            losses.append(tiny_llama.cross_entropy(data.tokens[:8]).double().mean().item())
    assert control["attn", 1]["delta"] == pytest.approx(losses[1] - losses[0], abs=1e-5)  # on the draws' sequences


def first_of(result: DropCurveResult, target: str, n: int) -> list[str]:
    """What the ranking drops."""
    return next(r["dropped"] for r in result.rows if (r["target"], r["order"], r["n_dropped"]) == (target, "ranked", n))


def test_random_sets() -> None:
    many = units("head", 30, 9)
    best = many[:4]
    sets, possible = random_sets(many, 4, 50, 0, [best])
    assert possible == math.comb(270, 4) - 1
    assert len({frozenset(s) for s in sets}) == 50
    few, possible = random_sets(many[:5], 4, 50, 0, [best, many[1:5]])
    assert possible == 3 == len(few)
    assert frozenset(best) not in {frozenset(s) for s in few}
    assert random_sets(many[:4], 4, 5, 0, [best]) == ([], 0)
    assert random_sets(many, 4, 3, 1)[0] == random_sets(many, 4, 3, 1)[0] != random_sets(many, 4, 3, 2)[0]


def test_a_lucky_drop_of_no_accuracy_has_a_wide_interval(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    """Answers are counts: no change on sixteen images is not known exactly."""
    result = drop_curve(vit_mini, glyphs.take(8), glyphs.take(16), DropCurveConfig(("head",), (1,), ("ranked",)))
    row = result.rows[1]
    assert row["accuracy_low"] < row["accuracy_change"] < row["accuracy_high"]
    assert row["accuracy_high"] - row["accuracy_low"] > 0.1


def test_orders() -> None:
    joint = units("joint", 3)
    assert len(joint) == 6
    assert last_first(joint)[:3] == [("mlp", 2), ("attn", 2), ("mlp", 1)]
    assert sorted(random_order(joint, 1)) == sorted(joint)
    assert random_order(joint, 1) == random_order(joint, 1) != random_order(joint, 2)
    assert ranked({("attn", 0): 0.1, ("attn", 1): 0.1, ("mlp", 0): 0.05}) == [("mlp", 0), ("attn", 1), ("attn", 0)]
    assert Drop.of([("head", 7), ("attn", 2)], n_heads=3) == Drop(attn=(2,), heads=((2, 1),))


def test_iterative_scores_what_is_left(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    scores = Scores(gpt2_mini, val_tokens.take(2))
    found = iterative_order(scores, "mlp", 2)
    first, second = found
    assert first == ranked(scores.of("mlp"))[0]
    with masked(gpt2_mini, Drop.of([first])):
        left = Scores(gpt2_mini, val_tokens.take(2)).of("mlp")
    assert second == ranked({unit: score for unit, score in left.items() if unit != first})[0]
    assert found == {first: scores.of("mlp")[first], second: left[second]}  # each score is that of its own step


def test_groups_are_kv_heads_with_their_heads(tiny_llama: HookedModel) -> None:
    data = TokenDataset.from_tokens(torch.randint(0, 101, (2, 12)), "random")
    scores = Scores(tiny_llama, data)
    heads, groups = scores.of("head"), scores.of("group")
    assert list(groups) == units("group", 3, 6, 2)
    assert groups["group", 3] == pytest.approx(sum(heads["head", i] for i in (9, 10, 11)))
    assert Drop.of([("group", 3)], 6, 2) == Drop(heads=((1, 3), (1, 4), (1, 5)))
    assert unit_name(("group", 3), tiny_llama.cfg) == "group.1.1"
    found = select(tiny_llama, ranked(groups), Budget(kv_bytes=1 / 3), data)
    assert len(found.units) == 2
    assert found.saved == pytest.approx(1 / 3)


def test_size_budgets(gpt2_mini: HookedModel, tiny_llama: HookedModel, val_tokens: TokenDataset) -> None:
    order = [("attn", 3), ("attn", 0), ("attn", 1)]
    dense = n_parameters(gpt2_mini.hf)
    layer = 192 * 4 * 192 + 4 * 192 + 2 * 192  # q, k, v, o with biases, and the norm
    found = select(gpt2_mini, order, Budget(parameters=1.5 * layer / dense), val_tokens)
    assert found.units == (("attn", 3), ("attn", 0))
    assert found.saved == pytest.approx(2 * layer / dense, abs=1e-9)
    assert kv_bytes_per_token(gpt2_mini.hf) == 4 * 2 * 192 * 4
    half = select(gpt2_mini, order, Budget(kv_bytes=0.5), val_tokens)
    assert (half.units, half.saved) == ((("attn", 3), ("attn", 0)), 0.5)
    heads = [("head", 3), ("head", 4), ("head", 5)]  # all query heads of the second kv head of layer 0
    tokens = TokenDataset.from_tokens(torch.randint(0, 101, (2, 8)), "random")
    assert select(tiny_llama, heads, Budget(kv_bytes=1 / 6), tokens).units == tuple(heads)
    with pytest.raises(ConfigError, match="cannot save 90%"):
        select(gpt2_mini, order, Budget(kv_bytes=0.9), val_tokens)
    with pytest.raises(ConfigError, match="cannot drop 4 of 3"):
        select(gpt2_mini, order, Budget(n=4), val_tokens)


def test_loss_budget_is_the_largest_that_keeps(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    data = val_tokens.take(2)
    order = [("head", i) for i in (3, 17, 8, 12, 0, 23)]
    dense = quality(gpt2_mini, data)[0]
    deltas = []
    for n in range(1, 6):
        with masked(gpt2_mini, Drop.of(order[:n], 6)):
            deltas.append(quality(gpt2_mini, data)[0] - dense)
    limit = float(np.median(deltas))
    first_over = next(i for i, delta in enumerate(deltas) if delta > limit)
    if first_over == 0:
        pytest.fail(f"choose another order: {deltas}")
    found = select(gpt2_mini, order, Budget(max_delta_ce=limit), data)
    assert len(found.units) == first_over
    assert found.saved == pytest.approx(deltas[first_over - 1], abs=1e-6)
    with pytest.raises(ConfigError, match="allow more"):
        select(gpt2_mini, [("mlp", 0), ("mlp", 1)], Budget(max_delta_ce=0.0), data)


def test_latency_budget_measures(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    found = select(gpt2_mini, [("block", i) for i in (3, 2, 1, 0)], Budget(latency=0.2), val_tokens.take(4))
    assert found.saved is not None
    assert found.saved >= 0.2
    assert len(found.tried) == len(found.units)


def test_images(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    config = DropCurveConfig(("mlp",), (1,), ("ranked", "last"))
    result = drop_curve(vit_mini, glyphs.take(8), glyphs.take(16), config)
    assert result.rows[0]["n_predictions"] == 16
    with pytest.raises(ConfigError, match="no KV cache"):
        select(vit_mini, [("attn", 0)], Budget(kv_bytes=0.1), glyphs)


@pytest.mark.parametrize("bad", [{}, {"n": 1, "latency": 0.5}, {"n": 0}, {"parameters": 1.5}, {"max_delta_ce": -1.0}])
def test_bad_budgets(bad: dict) -> None:
    with pytest.raises(ConfigError):
        Budget(**bad)


def test_too_many() -> None:
    with pytest.raises(ConfigError, match="counts"):
        DropCurveConfig(counts=(0,))
    with pytest.raises(ConfigError, match="twice"):
        Drop(heads=((0, 1), (0, 1))).check(None)  # type: ignore[arg-type]
