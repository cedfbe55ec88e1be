"""How far codes and clusters of attention maps can be trusted: held-out images, fresh draws, and maps without clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from attlas.analyses.vit.patterns.autoencoder import PatternAutoencoder, hellinger
from attlas.data.progress import Track, no_track


@dataclass(frozen=True)
class Quality:
    """How well one way of coding maps does.

    Attributes:
        method: "autoencoder" (starts as PCA), "autoencoder_random" (random weights at the start), "pca", or "untrained" (an
            encoder of random weights).
        n_latent: size of the code.
        explained: explained variance of held-out maps (Hellinger vectors), by draw; empty for "untrained".
        ari: adjusted Rand index, for every two draws, of the clusters that they give to the same held-out maps.
        silhouette: mean silhouette of the first draw's clusters on held-out maps, in its code (a sample of 2,000).
        ari_null, silhouette_null: the same on Gaussian vectors of the maps' mean and covariance, which hold no clusters.
    """

    method: str
    n_latent: int
    explained: tuple[float, ...]
    ari: tuple[float, ...]
    silhouette: float
    ari_null: tuple[float, ...]
    silhouette_null: float


def gaussian_like(x: np.ndarray, seed: int) -> np.ndarray:
    """As many Gaussian vectors [n, d] float32 as x has, with its mean and covariance: one cloud (as in SigClust, Liu et al.
    2008, doi 10.1198/016214508000000454)."""
    mean = x.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False, dtype=np.float64))
    noise = np.random.default_rng(seed).standard_normal(x.shape)
    drawn: np.ndarray = (mean + (noise * np.sqrt(np.maximum(values, 0))) @ vectors.T).astype(np.float32)
    return drawn


def encode_and_cluster(
    maps: np.ndarray,
    held_out: np.ndarray,
    draw: np.ndarray,
    *,
    n_latent: int,
    n_clusters: int,
    n_epochs: int,
    seed: int,
    track: Track = no_track,
) -> tuple[PatternAutoencoder, np.ndarray, np.ndarray, list[Quality]]:
    """Fit codes and clusters on each draw of maps with a seed of its own, and compare them on all held-out maps.

    Args:
        maps: [n, rows, columns], of all draws.
        held_out: bool [n], left out of every fit.
        draw: int [n] from 0, the draw that a map belongs to.
        n_latent, n_clusters, n_epochs: size of the code, of k-means, length of training.
        seed: of the first draw's start; draw d takes seed + d.
        track: progress.

    Returns: (autoencoder, latents [m, n_latent], cluster labels [m], the largest first) of the m maps of draw 0, and the
    quality of each way: the autoencoder from PCA and from random weights, PCA and an untrained encoder.
    """
    x = hellinger(maps)
    blank = gaussian_like(x, seed)
    ways = [("autoencoder", "pca", n_epochs), ("autoencoder_random", "random", n_epochs)]
    ways += [("pca", "pca", 0), ("untrained", "random", 0)]
    quality, firsts = [], []
    for method, start, epochs in track(ways, "codes and their controls", len(ways)):

        def coder(index: int, start: str = start, epochs: int = epochs) -> PatternAutoencoder:
            return PatternAutoencoder(n_latent=n_latent, n_epochs=epochs, start=start, seed=seed + index, as_given=True)

        first, explained, ari, silhouette = _over_draws(x, held_out, draw, coder, n_clusters, seed)
        _, _, ari_null, silhouette_null = _over_draws(blank, held_out, draw, coder, n_clusters, seed)
        explained = () if method == "untrained" else explained
        quality.append(Quality(method, n_latent, explained, ari, silhouette, ari_null, silhouette_null))
        firsts.append(first)
    encoder, clusters = firsts[0]
    latents = encoder.transform(x[draw == 0])
    labels = clusters.predict(latents)
    order = np.argsort(-np.bincount(labels), kind="stable")
    _, rank = np.unique(np.argsort(order)[labels], return_inverse=True)
    encoder.as_given = False
    return encoder, latents, rank, quality


def _over_draws(
    x: np.ndarray,
    held_out: np.ndarray,
    draw: np.ndarray,
    coder: Callable[[int], PatternAutoencoder],
    n_clusters: int,
    seed: int,
) -> tuple[tuple[PatternAutoencoder, Any], tuple[float, ...], tuple[float, ...], float]:
    """(coder and k-means of draw 0), explained variance by draw, agreement by pair of draws, silhouette."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    unseen = x[held_out]
    fits, codes, labels = [], [], []
    for index in range(int(draw.max()) + 1):
        mine = x[(draw == index) & ~held_out]
        encoder = coder(index).fit(mine)
        clusters = KMeans(min(n_clusters, len(mine)), n_init=4, random_state=seed + index).fit(encoder.transform(mine))
        fits.append((encoder, clusters))
        codes.append(encoder.transform(unseen))
        labels.append(clusters.predict(codes[-1]))
    explained = tuple(encoder.score(unseen) for encoder, _ in fits)
    ari = tuple(float(adjusted_rand_score(a, b)) for a, b in combinations(labels, 2))
    return fits[0], explained, ari, _silhouette(codes[0], labels[0])


def _silhouette(latents: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import silhouette_score

    if not 1 < len(np.unique(labels)) < len(latents):
        return 0.0
    return float(silhouette_score(latents, labels, sample_size=min(2000, len(latents)), random_state=0))
