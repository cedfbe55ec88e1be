"""Column mass, removal of patches and attention rollout against literal readings of their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.analyses.vit.readout import make_readout
from attlas.analyses.vit.rollout import rollout, token_relevance
from attlas.analyses.vit.tokens.column_mass import column_mass, gini
from attlas.analyses.vit.tokens.removal import RemovalCurve, random_orders, removal_curves
from attlas.analyses.vit.tokens.run import VitTokensConfig, vit_tokens
from attlas.data.images.dataset import ImageDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel


def test_removal_equals_masking_the_patches(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    """Tokens that are gone answer as tokens that no query may attend to."""
    few = glyphs.take(5)
    order = random_orders(5, 64, seed=1)
    for layer in (0, 2):
        curve = removal_curves(
            vit_mini, few, make_readout(vit_mini, few), {"o": order}, fractions=(0.0, 0.25, 0.5), layer=layer
        )["o"]
        assert curve.fractions.tolist() == [0, 0.25, 0.5]
        for step, count in enumerate((0, 16, 32)):

            def mask(scores: torch.Tensor, _name: str, count: int = count) -> torch.Tensor:
                scores = scores.clone()
                for image in range(5):
                    scores[image, :, :, 1 + order[image, :count]] = -torch.inf
                return scores

            hooks = {f"blocks.{later}.attn.hook_attn_scores": mask for later in range(layer, 4)}
            with torch.no_grad(), vit_mini.hooks(hooks):
                p = vit_mini(few.pixels).softmax(-1)
            assert few.labels is not None
            np.testing.assert_allclose(curve.per_image["probability"][step], p[range(5), few.labels], atol=1e-5)
            np.testing.assert_array_equal(curve.per_image["accuracy"][step], p.argmax(-1) == few.labels)
    np.testing.assert_allclose(curve.per_image["similarity"][0], 1, atol=1e-6)


def test_column_mass_equals_the_patterns(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    few = glyphs.take(4)
    found = column_mass(vit_mini, few, batch_size=3)
    pattern = vit_mini.capture(few.pixels, "blocks.2.attn.hook_pattern")["blocks.2.attn.hook_pattern"].double().numpy()
    received = pattern.sum(2) / 65
    np.testing.assert_allclose(found.average[2], received.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.average.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found.by_image[:, 2], received[:, :, 1:].mean(1), atol=1e-6)
    starved = [(r < r.mean() / 2).mean() for r in received[:, 3, 1:]]
    assert found.leaf_share[2, 3] == pytest.approx(np.mean(starved))
    frequency = found.leaf_frequency(2, 0.125)
    assert frequency.shape == (8, 8)
    assert frequency.sum() == pytest.approx(8)
    least = [set(np.argsort(r, kind="stable")[:8]) for r in found.by_image[:, 2]]
    np.testing.assert_allclose(frequency.ravel()[10], np.mean([10 in s for s in least]))


@given(st.lists(st.floats(0, 5), min_size=2, max_size=9).filter(lambda x: sum(x) > 0.1))
@settings(max_examples=40, deadline=None)
def test_gini_equals_mean_difference(values: list[float]) -> None:
    x = np.array(values)
    wanted = np.abs(x[:, None] - x[None]).mean() / (2 * x.mean())
    assert gini(torch.tensor(values, dtype=torch.float64)).item() == pytest.approx(wanted, abs=1e-9)


def test_rollout_equals_matrix_products(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    few = glyphs.take(2)
    cache = vit_mini.capture(few.pixels, "blocks.*.attn.hook_pattern")
    product = np.eye(65)
    for layer in range(4):
        a = cache[f"blocks.{layer}.attn.hook_pattern"][1].double().mean(0).numpy()
        product = (0.5 * a + 0.5 * np.eye(65)) @ product
    np.testing.assert_allclose(product.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(rollout(vit_mini, few.pixels)[1], product[0, 1:], atol=1e-6)
    last = cache["blocks.3.attn.hook_pattern"][0].mean(0)[0, 1:]
    torch.testing.assert_close(token_relevance(vit_mini, few.pixels)["last_layer"][0], last)


def test_auc_is_the_trapezoid_area() -> None:
    curve = RemovalCurve(np.array([0.0, 0.5, 1.0]), {"m": np.array([[1.0, 2.0], [0.5, 2.0], [0.0, 2.0]])})
    np.testing.assert_allclose(curve.auc("m"), [0.5, 2.0])


def test_attention_finds_the_glyph(vit_mini: HookedModel, glyphs: ImageDataset, tmp_path: Path) -> None:
    """Rollout beats chance in both tests; patches that receive least at layer 0 are needed least, most-received most."""
    config = VitTokensConfig(fractions=(0.0, 0.2, 0.5, 0.8), n_bootstrap=200, n_curve_images=48)
    result = vit_tokens(vit_mini, glyphs, config)
    rows = {(r["test"], r["method"]): r for r in result.tables()["rollout"].to_pylist()}
    assert rows["deletion", "rollout"]["gain_low"] > 0.05
    assert rows["insertion", "rollout"]["gain_low"] > 0.05
    chance = [r["gain"] for (test, method), r in rows.items() if method.startswith("random") and test == "deletion"]
    assert np.mean(chance) == pytest.approx(0, abs=1e-6)
    found = result.summary()
    assert found["auc_least_received"] > found["auc_random"] + 0.05
    assert found["auc_random"] > found["auc_most_received"] + 0.05
    run = result.save(Workspace(tmp_path / "ws"), vit_mini.ref, glyphs.ref)
    removal = Workspace(tmp_path / "ws").read_table(run, "removal").to_pylist()
    assert len(removal) == 2 * 4 * 4 * 3  # layers, orders, fractions, metrics
    assert {r["n_images"] for r in removal} == {48}
    assert result.plot().data[0].name == "least-received"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"fractions": (0.0, 1.0)}, "at least one patch stays"),
        ({"fractions": (0.5, 0.1)}, "must rise"),
        ({"n_random": 0}, "1 or more"),
        ({"residual": 1.0}, "between 0 and 1"),
    ],
)
def test_bad_config(fields: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        VitTokensConfig(**fields)


def test_layer_must_exist(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    with pytest.raises(ConfigError, match="layers 0–3"):
        vit_tokens(vit_mini, glyphs, VitTokensConfig(remove_at=(4,)))


def test_curves_are_of_images_of_all_classes(
    vit_mini: HookedModel, glyphs: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images in the order of their classes, too: the first ones would be of one class."""
    assert glyphs.labels is not None
    ordered = glyphs.select(torch.argsort(glyphs.labels, stable=True))
    seen: list[ImageDataset] = []

    def look(model: HookedModel, images: ImageDataset, *_args: object, **_more: object) -> None:
        seen.append(images)
        raise KeyboardInterrupt

    monkeypatch.setattr("attlas.analyses.vit.tokens.run.removal_curves", look)
    with pytest.raises(KeyboardInterrupt):
        vit_tokens(vit_mini, ordered, VitTokensConfig(n_curve_images=36))
    labels = seen[0].labels
    assert labels is not None
    first = ordered.labels[:36].unique() if ordered.labels is not None else labels
    assert len(labels) == 36
    assert len(labels.unique()) > len(first) + 8
