"""Clusters of attention maps: prototypes, names, and how stable they are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from attlas.analyses.vit_pattern_autoencoder import PatternAutoencoder, hellinger
from attlas.analyses.vit_pattern_sample import PatternSample
from attlas.data.progress import Track, no_track


@dataclass(frozen=True)
class Quality:
    """How well one way of coding maps does.

    Attributes:
        method: "autoencoder", "pca", or "untrained" (an encoder of random weights).
        n_latent: size of the code.
        explained: explained variance of held-out maps (Hellinger vectors), by seed; empty for "untrained".
        ari: adjusted Rand index of the clusters of every two seeds, on all maps.
        silhouette: mean silhouette of the first seed's clusters in its code (a sample of 2,000 maps).
    """

    method: str
    n_latent: int
    explained: tuple[float, ...]
    ari: tuple[float, ...]
    silhouette: float


def kmeans(latents: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Labels [n] by k-means, the largest cluster first (labels then do not depend on the order of discovery)."""
    from sklearn.cluster import KMeans

    labels = KMeans(n_clusters=min(n_clusters, len(latents)), n_init=4, random_state=seed).fit_predict(latents)
    order = np.argsort(-np.bincount(labels), kind="stable")
    rank: np.ndarray = np.argsort(order)[labels]
    return rank


def encode_and_cluster(
    maps: np.ndarray,
    held_out: np.ndarray,
    *,
    n_latent: int,
    n_clusters: int,
    n_epochs: int,
    seeds: tuple[int, ...],
    track: Track = no_track,
) -> tuple[PatternAutoencoder, np.ndarray, np.ndarray, list[Quality]]:
    """Fit on maps outside `held_out` (bool [n]) with every seed, beside PCA of the same size and an untrained encoder.

    Returns: (autoencoder, latents [n, n_latent], cluster labels [n]) of the first seed, and the quality of each way.
    """
    coders = [PatternAutoencoder(n_latent=n_latent, n_epochs=n_epochs, seed=s) for s in seeds]
    latents = [c.fit(maps[~held_out], track).transform(maps) for c in coders]
    labels = [kmeans(z, n_clusters, s) for z, s in track([*zip(latents, seeds, strict=True)], "clusters")]
    explained = tuple(c.score(maps[held_out]) for c in coders)
    quality = [_quality("autoencoder", latents[0], labels, explained)]

    x = hellinger(maps)
    mean = x[~held_out].mean(0)
    _, _, directions = np.linalg.svd(x[~held_out] - mean, full_matrices=False)
    basis = directions[:n_latent].T
    codes = (x - mean) @ basis
    rest = x[held_out] - mean
    share = 1 - float(np.square(rest - rest @ basis @ basis.T).sum() / np.square(rest).sum())
    quality.append(_quality("pca", codes, [kmeans(codes, n_clusters, s) for s in seeds], (share,)))

    random = [
        PatternAutoencoder(n_latent=n_latent, n_epochs=1, learning_rate=1e-12, start="random", seed=s).fit(
            maps[~held_out]
        )
        for s in track(seeds, "untrained encoders")
    ]
    codes_by_seed = [c.transform(maps) for c in random]
    found = [kmeans(z, n_clusters, s) for z, s in zip(codes_by_seed, seeds, strict=True)]
    quality.append(_quality("untrained", codes_by_seed[0], found, ()))
    return coders[0], latents[0], labels[0], quality


def _quality(method: str, latents: np.ndarray, labels: list[np.ndarray], explained: tuple[float, ...]) -> Quality:
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    ari = tuple(float(adjusted_rand_score(a, b)) for a, b in combinations(labels, 2))
    separable = 1 < len(np.unique(labels[0])) < len(latents)
    size = min(2000, len(latents))
    silhouette = silhouette_score(latents, labels[0], sample_size=size, random_state=0) if separable else 0.0
    return Quality(method, latents.shape[1], explained, ari, float(silhouette))


DESCRIPTORS = ("self", "near", "same_row", "same_column", "evenness", "patch_mass", "down", "right")


def describe(sample: PatternSample) -> dict[str, np.ndarray]:
    """Descriptors of every map, [n], shares of the mass on patches: self; near (at most one hop away, self left out);
    same_row and same_column (self left out); evenness, entropy over log(n patches); patch_mass, not on prefix tokens;
    down and right, mean displacement from the query to where it looks, as a share of the grid's height and width."""
    rows, columns = sample.grid
    total = sample.maps.sum((1, 2))
    p = sample.maps / np.maximum(total, 1e-12)[:, None, None]
    y, x = np.divmod(sample.query, columns)
    dy = np.abs(np.arange(rows)[None] - y[:, None])[:, :, None]
    dx = np.abs(np.arange(columns)[None] - x[:, None])[:, None, :]
    hop = np.maximum(dy, dx)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum((1, 2))
    return {
        "self": (p * (hop == 0)).sum((1, 2)),
        "near": (p * (hop == 1)).sum((1, 2)),
        "same_row": (p * ((dy == 0) & (dx > 0))).sum((1, 2)),
        "same_column": (p * ((dx == 0) & (dy > 0))).sum((1, 2)),
        "evenness": entropy / np.log(max(2, rows * columns)),
        "patch_mass": total,
        "down": ((p.sum(2) * np.arange(rows)).sum(1) - y) / rows,
        "right": ((p.sum(1) * np.arange(columns)).sum(1) - x) / columns,
    }


def name_cluster(means: dict[str, float]) -> str:
    """A word for a cluster, from its mean descriptors *(ours)*: the first rule that holds."""
    rules = (
        ("self", means["self"] > 0.4),
        ("near", means["self"] + means["near"] > 0.5),
        ("row", means["same_row"] > 0.4),
        ("column", means["same_column"] > 0.4),
        ("even", means["evenness"] > 0.9),
        ("spots", means["evenness"] < 0.6),
    )
    named = next((name for name, holds in rules if holds), "")
    if named:
        return named
    down, right = means["down"], means["right"]
    if max(abs(down), abs(right)) < 0.1:
        return "broad"
    if abs(down) > abs(right):
        return "below" if down > 0 else "above"
    return "right" if right > 0 else "left"


def prototypes(sample: PatternSample, labels: np.ndarray) -> np.ndarray:
    """Mean recentred map of each cluster [cluster, 2·rows − 1, 2·columns − 1]; offsets that no member sees are 0."""
    recentred = sample.recentred()
    ones = PatternSample(
        np.ones_like(sample.maps), sample.layer, sample.head, sample.image, sample.query, sample.grid
    ).recentred()
    n_clusters = int(labels.max()) + 1
    return np.stack(
        [recentred[labels == c].sum(0) / np.maximum(ones[labels == c].sum(0), 1) for c in range(n_clusters)]
    )


def medoids(latents: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The map nearest to each cluster's mean latent, int64 [cluster]."""
    found = []
    for c in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == c)
        centre = latents[members].mean(0)
        found.append(members[np.square(latents[members] - centre).sum(1).argmin()])
    return np.array(found, dtype=np.int64)


def layout(latents: np.ndarray, method: str, seed: int) -> np.ndarray:
    """Latents in the plane, float32 [n, 2]: "tsne" or "pca"."""
    if method == "pca" or len(latents) < 10:
        centred = latents - latents.mean(0)
        plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(latents) - 1) / 3)
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(latents)
    flat: np.ndarray = plane.astype(np.float32)
    return flat if flat.shape[1] == 2 else np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
