"""Patterns of ViT heads: the draw, the codes and their controls, clusters and their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_score

from attlas.analyses.vit.patterns.autoencoder import PatternAutoencoder, hellinger
from attlas.analyses.vit.patterns.clusters import describe, name_cluster, prototypes
from attlas.analyses.vit.patterns.quality import encode_and_cluster, gaussian_like
from attlas.analyses.vit.patterns.run import VitPatternsConfig, VitPatternsResult, vit_patterns
from attlas.analyses.vit.patterns.sample import PatternSample, deal, sample_patterns
from attlas.data.images.dataset import ImageDataset
from attlas.data.splits import stratified_order
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel

GRID = (5, 6)


def _drawn(kind: str, query: int) -> np.ndarray:
    """A map of one of the shapes that clusters are named after, for a query on the grid."""
    rows, columns = GRID
    y, x = divmod(query, columns)
    dy, dx = np.abs(np.arange(rows) - y)[:, None], np.abs(np.arange(columns) - x)[None]
    hop = np.maximum(dy, dx)
    shape = {
        "self": hop == 0,
        "near": hop == 1,
        "row": (dy == 0) & (dx > 0),
        "column": (dx == 0) & (dy > 0),
        "even": hop >= 0,
        "below": (np.arange(rows) > y)[:, None] & (dx >= 0),
    }[kind].astype(float)
    map_: np.ndarray = shape / max(shape.sum(), 1) * 0.8
    return map_


def _synthetic(kinds: tuple[str, ...], each: int = 40) -> tuple[PatternSample, np.ndarray]:
    draw = np.random.default_rng(0)
    truth = np.repeat(np.arange(len(kinds)), each)
    queries = draw.integers(7, 22, size=len(truth))
    maps = np.stack([_drawn(kinds[t], int(q)) for t, q in zip(truth, queries, strict=True)])
    maps = (maps + draw.uniform(0, 0.004, size=maps.shape)).astype(np.float32)
    nothing = np.zeros(len(truth), dtype=np.int16)
    return PatternSample(maps, nothing, nothing, nothing, queries, GRID), truth


def test_the_draw_is_even_and_reads_the_right_maps(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    sample = sample_patterns(vit_mini, glyphs, n_maps=120, seed=3, batch_size=11)
    counts = np.zeros((4, 6), int)
    np.add.at(counts, (sample.layer, sample.head), 1)
    assert (counts == 5).all()
    cache = vit_mini.capture(glyphs.pixels, "blocks.*.attn.hook_pattern")
    prefix, (rows, columns) = vit_mini.cfg.n_prefix_tokens, sample.grid
    for i in range(0, len(sample), 7):
        pattern = cache[f"blocks.{sample.layer[i]}.attn.hook_pattern"]
        row = pattern[int(sample.image[i]), int(sample.head[i]), prefix + int(sample.query[i]), prefix:]
        np.testing.assert_allclose(sample.maps[i].ravel(), row.numpy(), atol=2e-6)
        y, x = divmod(int(sample.query[i]), columns)
        moved = sample.recentred()[i]
        for r in range(rows):
            for c in range(columns):
                assert moved[r - y + rows - 1, c - x + columns - 1] == sample.maps[i, r, c]
        assert moved.sum() == pytest.approx(sample.maps[i].sum(), abs=1e-6)
    again = sample_patterns(vit_mini, glyphs, n_maps=120, seed=3)
    assert np.array_equal(again.query, sample.query)
    assert not np.array_equal(sample_patterns(vit_mini, glyphs, n_maps=120, seed=4).query, sample.query)


def test_autoencoder_fits_transforms_and_scores() -> None:
    sample, truth = _synthetic(("self", "row", "column"))
    coder = PatternAutoencoder(n_latent=2, n_hidden=32, n_epochs=40, batch_size=16)
    with pytest.raises(ConfigError, match="not fitted"):
        coder.transform(sample.maps)
    latents = coder.fit_transform(sample.maps)
    assert latents.shape == (len(truth), 2)
    assert coder.losses_[-1] < 0.9 * coder.losses_[0]
    linear = PCA(2).fit(hellinger(sample.maps)).explained_variance_ratio_.sum()
    assert coder.score(sample.maps) > linear + 0.02  # it starts from PCA, and what is curved is left to the MLP
    twin = PatternAutoencoder(n_latent=2, n_hidden=32, n_epochs=40, batch_size=16)
    np.testing.assert_array_equal(twin.fit(sample.maps).transform(sample.maps), latents)
    rebuilt = coder.inverse_transform(latents)
    np.testing.assert_allclose(rebuilt.sum(1), 1, atol=1e-5)
    x = hellinger(sample.maps).astype(np.float64)
    decoded = coder._decoder(torch.from_numpy(latents)).detach().numpy() + coder._mean.numpy()
    by_hand = 1 - np.square(x - decoded).sum() / np.square(x - x.mean(0)).sum()
    assert coder.score(sample.maps) == pytest.approx(by_hand, abs=1e-4)
    with pytest.raises(ConfigError, match="cells"):
        coder.transform(sample.maps[:, :2])
    with pytest.raises(ConfigError, match="at least 2"):
        PatternAutoencoder().fit(sample.maps[:1])


def test_hellinger_vectors_are_units_and_empty_maps_are_flat() -> None:
    maps = np.stack([np.eye(3), np.zeros((3, 3))])
    found = hellinger(maps)
    np.testing.assert_allclose(np.square(found).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found[1], 1 / 3, atol=1e-6)


def test_no_epochs_leave_pca_or_random_weights() -> None:
    sample, _ = _synthetic(("self", "row", "column"))
    x = hellinger(sample.maps)
    pca = PCA(3, svd_solver="full").fit(x[::2])
    coder = PatternAutoencoder(n_latent=3, n_epochs=0).fit(sample.maps[::2])
    rest = np.square(x[1::2] - x[::2].mean(0)).sum()
    error = np.square(x[1::2] - pca.inverse_transform(pca.transform(x[1::2]))).sum()
    assert coder.score(sample.maps[1::2]) == pytest.approx(1 - error / rest, abs=1e-4)
    given = PatternAutoencoder(n_latent=3, n_epochs=0, as_given=True).fit(x[::2])
    np.testing.assert_array_equal(given.transform(x), coder.transform(sample.maps))
    assert PatternAutoencoder(n_latent=3, n_epochs=0, start="random").fit(sample.maps).score(sample.maps) < 0.3


def test_draws_are_dealt_evenly_within_heads() -> None:
    sample, truth = _synthetic(("self", "row"), each=61)
    sample = PatternSample(sample.maps, (truth % 2).astype(np.int16), truth, truth, truth, GRID)
    draw = deal(sample, 3, seed=0)
    for head in (0, 1):
        assert sorted(np.bincount(draw[truth == head])) == [20, 20, 21]
    assert (np.diff(draw[:30]) != 1).any()  # shuffled, not one after another
    assert not np.array_equal(draw, deal(sample, 3, seed=1))


def test_the_null_has_the_mean_and_covariance_and_no_clusters() -> None:
    sample, truth = _synthetic(("self", "near", "row", "column"), each=400)
    x = hellinger(sample.recentred())
    blank = gaussian_like(x, 0)
    assert np.abs(blank.mean(0) - x.mean(0)).max() < 0.03
    assert np.abs(np.cov(blank.T) - np.cov(x.T)).max() < 0.1 * np.cov(x.T).max()
    assert (blank.std(0)[x.std(0) == 0] < 1e-6).all()
    along = (x[truth == 0].mean(0) - x[truth != 0].mean(0)).astype(np.float64)
    # two heaps along a line of means become one: kurtosis of a Gaussian, 3
    kurtosis = [float(np.mean((v := (y @ along) - (y @ along).mean()) ** 4) / v.var() ** 2) for y in (x, blank)]
    assert kurtosis[0] < 2.6
    assert kurtosis[1] == pytest.approx(3, abs=0.35)


SIZE = {"n_latent": 3, "n_clusters": 4, "n_epochs": 25}


def _of_draws(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.permutation(len(maps)) % 5 == 0, rng.permutation(len(maps)) % 2


def test_agreement_is_of_draws_on_held_out_maps() -> None:
    sample, truth = _synthetic(("self", "near", "row", "column"), each=60)
    maps = sample.recentred()
    held_out, draw = _of_draws(maps)
    coder, latents, labels, quality = encode_and_cluster(maps, held_out, draw, **SIZE, seed=0)
    found = {q.method: q for q in quality}
    assert list(found) == ["autoencoder", "autoencoder_random", "pca", "untrained"]
    np.testing.assert_array_equal(coder.transform(maps[draw == 0]), latents)
    assert (np.diff(np.bincount(labels)) <= 0).all()  # the largest first
    assert adjusted_rand_score(truth[draw == 0], labels) > 0.9
    given = []  # by hand
    for d in range(2):
        mine = maps[(draw == d) & ~held_out]
        code = PatternAutoencoder(n_latent=3, n_epochs=25, start="random", seed=d).fit(mine)
        assert found["autoencoder_random"].explained[d] == pytest.approx(code.score(maps[held_out]))
        kmeans, codes = KMeans(4, n_init=4, random_state=d).fit(code.transform(mine)), code.transform(maps[held_out])
        given.append(kmeans.predict(codes))
        if d == 0:
            expected = silhouette_score(codes, given[0])
            assert found["autoencoder_random"].silhouette == pytest.approx(expected, abs=1e-5)
    assert found["autoencoder_random"].ari == pytest.approx([adjusted_rand_score(*given)])
    ours = found["autoencoder"]
    assert min(ours.ari) > max(ours.ari_null) + 0.2
    assert ours.silhouette > ours.silhouette_null + 0.2
    assert min(ours.explained) > max(found["pca"].explained)
    assert found["untrained"].explained == ()


def test_noise_is_no_better_than_its_null() -> None:
    maps = np.random.default_rng(0).uniform(0.5, 1, size=(240, *GRID)).astype(np.float32)
    *_, quality = encode_and_cluster(maps, *_of_draws(maps), **SIZE, seed=0)
    for q in quality:
        assert np.mean(q.ari) < np.mean(q.ari_null) + 0.15
        assert q.silhouette < q.silhouette_null + (0.05 if q.method == "pca" else 0.2)


@pytest.mark.parametrize("kind", ["self", "near", "row", "column", "even", "below"])
def test_clusters_are_named_by_what_they_look_at(kind: str) -> None:
    sample, truth = _synthetic((kind,), each=30)
    means = {name: float(values.mean()) for name, values in describe(sample).items()}
    assert name_cluster(means) == kind
    assert means["patch_mass"] == pytest.approx(float(sample.maps.sum((1, 2)).mean()), rel=1e-5)
    middle = prototypes(sample, truth)[0]
    assert middle.shape == (2 * GRID[0] - 1, 2 * GRID[1] - 1)
    if kind == "self":
        assert np.unravel_index(middle.argmax(), middle.shape) == (GRID[0] - 1, GRID[1] - 1)


@pytest.fixture(scope="module")
def small(vit_mini: HookedModel, glyphs: ImageDataset) -> VitPatternsResult:
    config = VitPatternsConfig(n_maps=240, n_clusters=4, n_latent=3, n_epochs=3, n_seeds=2, layout="pca")
    return vit_patterns(vit_mini, glyphs, config)


def test_a_run_holds_what_its_tables_say(
    small: VitPatternsResult, vit_mini: HookedModel, glyphs: ImageDataset, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "w")
    run = small.save(workspace, vit_mini.ref, glyphs.ref)
    patterns = workspace.read_table(run, "patterns").to_pandas()
    clusters = workspace.read_table(run, "clusters").to_pandas()
    arrays = workspace.read_arrays(run, "patterns")
    assert len(patterns) == len(arrays["maps"]) == len(arrays["latents"]) == 240
    assert clusters.n_maps.tolist() == patterns.groupby("cluster").size().tolist()
    assert clusters.n_maps.is_monotonic_decreasing
    for row in clusters.itertuples():
        mine = patterns[patterns.cluster == row.cluster]
        assert row.medoid in set(mine["map"])
        assert row.down == pytest.approx(mine.down.mean(), abs=1e-6)
        centre = arrays["latents"][mine["map"]].mean(0)
        distance = np.square(arrays["latents"][mine["map"]] - centre).sum(1)
        assert mine["map"].iloc[distance.argmin()] == row.medoid
    heads = workspace.read_table(run, "head_clusters").to_pandas()
    np.testing.assert_allclose(heads.groupby(["layer", "head"]).share.sum(), 1)
    shown = glyphs.thumbnails[patterns.image]
    np.testing.assert_array_equal(arrays["thumbnails"][patterns.thumbnail], shown)
    quality = workspace.read_table(run, "pattern_quality").to_pandas().set_index("method")
    assert set(quality.index) == {"autoencoder", "autoencoder_random", "pca", "untrained"}
    assert run.summary["ari_autoencoder"] == quality.ari["autoencoder"]
    assert run.summary["ari_null"] == quality.ari_null["autoencoder"]
    assert run.summary["silhouette_null"] == quality.silhouette_null["autoencoder"]
    kept = set(stratified_order(len(glyphs), np.asarray(glyphs.labels), 0)[: len(glyphs) // 5])
    assert (quality.n_held_out > patterns.image.isin(kept).sum()).all()  # of both draws
    assert (quality.n_held_out < 3 * patterns.image.isin(kept).sum()).all()
    assert len(small.plot().data) == 4
    assert len(small.plot_prototypes().data) == 4


def test_too_few_images_or_maps_are_refused(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    with pytest.raises(ConfigError, match="4 images"):
        vit_patterns(vit_mini, glyphs.take(4), VitPatternsConfig(n_maps=240))
    with pytest.raises(ConfigError, match="draw more maps"):
        vit_patterns(vit_mini, glyphs.take(5), VitPatternsConfig(n_maps=20, n_seeds=8, seed=1))
