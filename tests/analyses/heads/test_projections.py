"""Projections of heads beside numpy's principal components of every position, and draws beside their weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.heads import ProjectConfig, head_projections
from attlas.analyses.heads.projections import draw
from attlas.cli import main
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel

FEW = ProjectConfig(batch_size=3, n_points=6, n_rows=4, n_axes=2)
HOOKS = {
    "q": "hook_q",
    "k": "hook_k",
    "v": "hook_v",
    "z": "hook_z",
    "q_rotated": "hook_rot_q",
    "k_rotated": "hook_rot_k",
}


@pytest.fixture(scope="module")
def text() -> TokenDataset:
    return TokenDataset.from_tokens(torch.randint(101, (7, 12), generator=torch.Generator().manual_seed(4)), "random")


def test_axes_are_the_components_of_every_position(tiny_llama: HookedModel, text: TokenDataset) -> None:
    found = head_projections(tiny_llama, text, FEW)
    layer, head = 1, 4  # reads kv head 1
    cache = tiny_llama.capture(text.tokens, [f"blocks.1.attn.{hook}" for hook in (*HOOKS.values(), "hook_pattern")])
    assert set(found.axes) == set(HOOKS)
    for name, hook in HOOKS.items():
        values = cache[f"blocks.1.attn.{hook}"].double().numpy()
        values = values[:, :, head if name[0] in "qz" else head // 3]
        flat = values[:, 1:].reshape(-1, values.shape[-1])
        _, size, components = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
        np.testing.assert_allclose(found.shares[name][layer, head], (size**2 / (size**2).sum())[:2], atol=1e-6)
        for point, (sequence, query, key) in enumerate(found.places[layer, head]):
            own = values[sequence, query if name[0] in "qz" else key] - flat.mean(0)
            expected = np.abs(own @ components[:2].T)  # up to the sign of a component
            np.testing.assert_allclose(np.abs(found.axes[name][layer, head, point]), expected, atol=1e-4)
    for place, weight in zip(found.places[layer, head], found.weights[layer, head], strict=True):
        sequence, query, key = place
        assert 0 < key <= query
        assert weight == pytest.approx(float(cache["blocks.1.attn.hook_pattern"][sequence, head, query, key]), abs=1e-5)
    assert len({tuple(place) for place in found.places[layer, head]}) == 6, "a pair was drawn twice"


def test_pairs_are_drawn_by_weight() -> None:
    weights = torch.tensor([0.5, 0.0, 0.3, 0.2])
    order, at, found = draw(weights.expand(4000, 4), 4, torch.Generator().manual_seed(0))
    first = torch.bincount(at[:, 0], minlength=4) / 4000
    torch.testing.assert_close(first, weights, atol=0.025, rtol=0)
    assert bool((at[:, 3] == 1).all()), "what has no weight ranks last"
    assert bool(order[:, 3].isneginf().all())
    second = (at[:, 1][at[:, 0] == 0] == 2).float().mean()  # 0.3 of what is left of 0.5
    assert float(second) == pytest.approx(0.6, abs=0.04)
    torch.testing.assert_close(found[0], weights[at[0]])


def test_batches_do_not_matter_to_axes_and_tokens_are_told(gpt2_mini: HookedModel, text: TokenDataset) -> None:
    one, many = (
        head_projections(gpt2_mini, text, ProjectConfig(size, 4, 3, 1, map="tsne", map_heads=("1.2",)))
        for size in (7, 2)
    )
    np.testing.assert_allclose(one.shares["k"], many.shares["k"], rtol=1e-6)
    assert set(one.axes) == {"q", "k", "v", "z"}, "nothing rotates"
    row = many.tables()["head_points"].to_pylist()[7]
    assert row["key_token"] == gpt2_mini.to_str_tokens([int(text.tokens[row["sequence"], row["key_at"]])])[0]
    assert row["q_rotated_axes"] == []
    assert many.tables()["head_maps"].num_rows == 4 * 4
    assert many.plot(1, 2, of="k").data


def test_images_and_bad_settings(
    vit_mini: HookedModel, gpt2_mini: HookedModel, glyphs: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = head_projections(vit_mini, glyphs.take(2), FEW)
    assert found.summary()["grid"] == [8, 8]
    assert {row["key_token"] for row in found.tables()["head_points"].to_pylist()} == {""}
    with pytest.raises(ConfigError, match="one token"):
        head_projections(gpt2_mini, TokenDataset.from_tokens(torch.zeros(2, 1, dtype=torch.int64), "short"), FEW)
    with pytest.raises(ConfigError, match="map 'pca' is unknown"):
        ProjectConfig(map="pca")
    with pytest.raises(ConfigError, match=r"'9\.9' is no head of vit-mini"):
        head_projections(vit_mini, glyphs.take(2), ProjectConfig(map="tsne", map_heads=("9.9",)))
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match="umap-learn"):
        head_projections(vit_mini, glyphs.take(2), ProjectConfig(map="umap"))


def test_umap_where_it_is_installed(gpt2_mini: HookedModel, text: TokenDataset) -> None:
    pytest.importorskip("umap")
    config = ProjectConfig(7, 20, 6, 2, map="umap", map_heads=("1.2",))
    found, again = (head_projections(gpt2_mini, text, config).tables()["head_maps"].to_pylist() for _ in range(2))
    assert len(found) == 4 * 20  # q, k, v, z
    places = np.array([[row["map_x"], row["map_y"]] for row in found])
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == len(places)
    assert found == again


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--n-tokens", "64", "--seq-len", "16", "--n-points", "3", "--workspace", str(tmp_path), "--json"]
    assert main(["heads", "project", *few]) == 0
    workspace = Workspace(tmp_path)
    run = next(iter(workspace.runs("head_points")))
    assert run.id == json.loads(capsys.readouterr().out)["run"]
    assert workspace.read_table(run, "head_points").num_rows == 72
