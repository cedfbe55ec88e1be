"""Ablation of parts against patching with zero, and against runs edited by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from attlas.analyses.circuits.ablation import ablate, random_parts
from attlas.analyses.circuits.activation_patching import PatchingConfig, patching
from attlas.analyses.circuits.frozen import FrozenPass, Part, parse_part
from attlas.analyses.circuits.sites import Site
from attlas.analyses.circuits.terms import LogitTarget
from attlas.cli import main
from attlas.errors import ConfigError, LayerRangeError
from attlas.interp import HookedModel

HOOK = "blocks.2.attn.hook_z"


@pytest.fixture
def setup(gpt2_mini: HookedModel, random_task: Any, random_sae: Any) -> tuple[FrozenPass, Any, LogitTarget, Any]:
    task, sae = random_task(), random_sae(gpt2_mini, 2)
    frozen = FrozenPass(gpt2_mini, task.tokens[0], {HOOK: sae})
    return frozen, task, LogitTarget((int(task.right[0, 0]),), tuple(task.wrong[0].tolist())), sae


def test_one_part_is_what_patching_with_zero_does(setup: Any, gpt2_mini: HookedModel) -> None:
    frozen, task, target, sae = setup
    feature = frozen.strongest(2, 1)[4][0][0]
    pairs = [
        (Part("head", 1, 3, head=2), Site("blocks.1.attn.hook_z", position=3, head=2)),
        (Part("mlp", 0, 5), Site("blocks.0.hook_mlp_out", position=5)),
        (Part("feature", 2, 4, feature=feature), Site(HOOK, position=4, feature=feature)),
        (Part("error", 2, 4), Site(HOOK, position=4, error=True)),
    ]
    config = PatchingConfig(mode="zero")
    exact = patching(gpt2_mini, task, config, saes={HOOK: sae}, sites=[site for _, site in pairs]).effects[:, 0]
    for (part, _), effect in zip(pairs, exact, strict=True):
        found = ablate(frozen, [part], target).summary()
        assert found["change"] == pytest.approx(effect, abs=2e-5)
        assert abs(found["change"]) > 1e-4
        assert found["kl"] > 0


def test_two_features_of_one_layer_go_by_their_amounts_together(setup: Any, gpt2_mini: HookedModel) -> None:
    frozen, _, target, sae = setup
    (a, _), (b, _) = frozen.strongest(2, 2)[4]
    parts = [Part("feature", 2, 4, feature=a), Part("feature", 2, 4, feature=b)]

    def by_hand(x: torch.Tensor, _name: str) -> torch.Tensor:
        f = sae.encode(x.flatten(-2))[0, 4]
        new = x.clone()
        new[0, 4] -= (f[a] * sae.W_dec[a] + f[b] * sae.W_dec[b]).view_as(new[0, 4])
        return new

    with torch.no_grad(), gpt2_mini.hooks({HOOK: by_hand}):
        expected = gpt2_mini(frozen.tokens)[0, -1].double()
    result = ablate(frozen, parts, target)
    torch.testing.assert_close(result.after, expected, atol=1e-5, rtol=1e-5)
    rows = result.tokens(3)
    best = int(expected.argmax())
    assert {row["id"]: row["after"] for row in rows}[best] == pytest.approx(float(expected.softmax(-1)[best]), abs=1e-6)
    assert [row["before"] for row in rows] == sorted((row["before"] for row in rows), reverse=True)


def test_a_head_that_is_gone_stays_gone(setup: Any, gpt2_mini: HookedModel) -> None:
    frozen, _, target, _ = setup
    feature = frozen.strongest(2, 1)[4][0][0]
    both = ablate(frozen, [Part("head", 2, 4, head=1), Part("feature", 2, 4, feature=feature)], target)
    cache: dict[str, torch.Tensor] = {}

    def seen(x: torch.Tensor, name: str) -> None:
        cache[name] = x.clone()

    from attlas.analyses.circuits.ablation import _without

    with torch.no_grad(), gpt2_mini.hooks({HOOK: seen}):
        gpt2_mini(frozen.tokens)
    assert (_without(cache[HOOK], both.parts, frozen.saes[2][1])[0, 4, 1] == 0).all()


def test_the_strongest_features_are_those_of_the_encoder(setup: Any) -> None:
    frozen, _, _, sae = setup
    for position, found in enumerate(frozen.strongest(2, 5)):
        f = sae.encode(frozen.cache[HOOK][position].flatten().float()[None])[0]
        values, indices = (t.tolist() for t in f.topk(5))
        assert [i for i, _ in found] == [i for i, v in zip(indices, values, strict=True) if v > 0]
        assert [a for _, a in found] == pytest.approx([v for v in values if v > 0], rel=1e-5)


def test_ids_are_read_back() -> None:
    for part in (
        Part("feature", 2, 5, feature=831),
        Part("head", 3, 7, head=0),
        Part("mlp", 2, 4),
        Part("error", 0, 1),
    ):
        assert parse_part(part.id) == part
    assert parse_part("2/831@5") == Part("feature", 2, 5, feature=831)
    assert parse_part("3.0@7") == Part("head", 3, 7, head=0)
    assert parse_part("3.0@-1") == Part("head", 3, -1, head=0)
    for bad in ("", "2/831", "embed @4", "logits", "-1/2@3", "2/831@5>"):
        with pytest.raises(ConfigError, match="names no part"):
            parse_part(bad)


def test_bad_input_is_named(setup: Any) -> None:
    frozen, _, target, sae = setup
    bad: list[tuple[Part, type[Exception], str]] = [
        (Part("feature", 1, 3, feature=0), ConfigError, "layer 1 has no autoencoder"),
        (Part("feature", 2, 3, feature=sae.cfg.d_sae), ConfigError, "out of range"),
        (Part("head", 1, 3, head=6), LayerRangeError, "0–5"),
        (Part("head", 1, 99, head=1), ConfigError, "position 99"),
        (Part("mlp", 4, 1), LayerRangeError, "0–3"),
        (Part("embed", 0, 1), ConfigError, "cannot be taken out"),
    ]
    for part, error, match in bad:
        with pytest.raises(error, match=match):
            ablate(frozen, [part], target)
    with pytest.raises(ConfigError, match="nothing"):
        ablate(frozen, [], target)


def test_controls_are_other_parts_of_the_same_kind(setup: Any, gpt2_mini: HookedModel) -> None:
    frozen, _, target, sae = setup
    active = {feature for feature, _ in frozen.strongest(2, sae.cfg.d_sae)[4]}
    feature = max(active)
    parts = [Part("head", 1, 3, head=2), Part("head", 1, 3, head=4), Part("feature", 2, 4, feature=feature)]
    generator = np.random.default_rng(0)
    seen: set[Part] = set()
    for _ in range(60):
        drawn = random_parts(frozen, [*parts, Part("mlp", 0, 5), Part("error", 2, 4)], generator)
        assert len(set(drawn)) == 3
        assert not set(drawn) & set(parts)
        seen |= set(drawn)
        ablate(frozen, drawn, target)
    assert {p.head for p in seen if p.kind == "head"} == {0, 1, 3, 5}
    features = {p.feature for p in seen if p.kind == "feature"}
    assert features <= active - {feature}
    assert len(features) > 1
    assert {(p.layer, p.position) for p in seen if p.kind == "head"} == {(1, 3)}


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    """The induction heads of gpt2-mini carry the answer; as many other heads of the layer do not."""
    argv = ["circuit", "ablate", "--model", "gpt2-mini", "--task", "induction", "--row", "3", "-w", str(tmp_path)]
    assert main([*argv, "--parts", "3.0@-1", "3.4@-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["after"] - found["before"] == pytest.approx(found["change"])
    assert found["change"] < 5 * found["control"]["low"] < 0
    assert found["control"]["n"] == 20
    assert main([*argv, "--parts", "mlp 1@3"]) == 0
    assert "no control" in capsys.readouterr().err
    assert main(argv) == 2
    assert "such as --parts 3.0@-1" in capsys.readouterr().err
    assert main([*argv, "--parts", "3.9@4"]) == 2
    assert "heads 0–5" in capsys.readouterr().err
