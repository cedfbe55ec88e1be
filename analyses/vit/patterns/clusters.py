"""Clusters of attention maps: descriptors, names, prototypes, and their place in the plane."""

from __future__ import annotations

import numpy as np

from attlas.analyses.vit.patterns.sample import PatternSample

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
        # 500 steps lay out 3,600 maps as well as 1,000 do, in half the time
        plane = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=seed).fit_transform(latents)
    flat: np.ndarray = plane.astype(np.float32)
    return flat if flat.shape[1] == 2 else np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
