"""What patterns do ViT heads draw? Single-query attention maps, coded, clustered and laid out (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.common.columns import HEAD, LAYER
from attlas.analyses.vit.config import VitPatternsConfig
from attlas.analyses.vit.patterns.clusters import DESCRIPTORS, describe, layout, medoids, name_cluster, prototypes
from attlas.analyses.vit.patterns.quality import Quality, encode_and_cluster
from attlas.analyses.vit.patterns.sample import PatternSample, deal, sample_patterns
from attlas.data.figures import new_figure, new_grid
from attlas.data.images.dataset import ImageDataset, shrink
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.splits import stratified_order
from attlas.errors import ConfigError
from attlas.interp import AnyModel, as_hooked
from attlas.interp.require import require_vit

_CLUSTER = column("cluster", pa.int16(), "", "cluster, the largest is 0")
_NEAR = "attention on the eight patches around, of the mass on patches"
_DESCRIPTOR_COLUMNS = (
    column("self", pa.float64(), "fraction", "attention on the query itself, of the mass on patches"),
    column("near", pa.float64(), "fraction", _NEAR),
    column(
        "same_row", pa.float64(), "fraction", "attention on the query's row, itself left out, of the mass on patches"
    ),
    column("same_column", pa.float64(), "fraction", "attention on the query's column, itself left out"),
    column("evenness", pa.float64(), "fraction", "entropy over patches, over log of their number"),
    column("patch_mass", pa.float64(), "fraction", "attention on patches; the rest is on CLS and registers"),
    column("down", pa.float64(), "fraction", "mean way down from the query to where it looks, of the grid's height"),
    column("right", pa.float64(), "fraction", "mean way right from the query to where it looks, of its width"),
)
PATTERNS = TableSchema(
    "patterns",
    "one query's attention map",
    (
        column("map", pa.int32(), "", "index into the arrays maps and latents"),
        LAYER,
        HEAD,
        column("image", pa.int32(), "", "index of the image in the image set"),
        column("thumbnail", pa.int32(), "", "index into the array thumbnails"),
        column("row", pa.int16(), "patches", "row of the query patch, from the top"),
        column("column", pa.int16(), "patches", "column of the query patch, from the left"),
        column("x", pa.float32(), "", "place in the plane of latents"),
        column("y", pa.float32(), "", "place in the plane of latents"),
        _CLUSTER,
        *_DESCRIPTOR_COLUMNS,
    ),
)
CLUSTERS = TableSchema(
    "clusters",
    "one cluster of maps; its prototype is in the array prototypes",
    (
        _CLUSTER,
        column("name", pa.string(), "", "self, near, row, column, even, spots, above, below, left, right or broad"),
        column("n_maps", pa.int32(), "maps", "members"),
        column("share", pa.float64(), "fraction", "members of all maps"),
        column("n_heads", pa.int16(), "heads", "heads with at least a tenth of their maps in it"),
        column("medoid", pa.int32(), "", "the map nearest to the cluster's mean latent"),
        *_DESCRIPTOR_COLUMNS,
    ),
)
HEAD_CLUSTERS = TableSchema(
    "head_clusters",
    "one head, one cluster",
    (
        LAYER,
        HEAD,
        _CLUSTER,
        column("share", pa.float64(), "fraction", "the head's maps that are in the cluster"),
        column("n_maps", pa.int32(), "maps", "the head's maps"),
    ),
)
QUALITY = TableSchema(
    "pattern_quality",
    "one way of coding maps",
    (
        column(
            "method", pa.string(), "", "autoencoder (from PCA), autoencoder_random (start); controls: pca, untrained"
        ),
        column("n_latent", pa.int16(), "", "size of the code"),
        column("explained", pa.float64(), "fraction", "variance of held-out images' maps explained, mean over draws"),
        column("explained_low", pa.float64(), "fraction", "lowest over draws"),
        column("explained_high", pa.float64(), "fraction", "highest over draws"),
        column("ari", pa.float64(), "", "adjusted Rand index of two draws' clusters on held-out maps, mean over pairs"),
        column("ari_low", pa.float64(), "", "lowest over pairs of draws"),
        column(
            "ari_null", pa.float64(), "", "ari on Gaussian vectors of the maps' mean and covariance, without clusters"
        ),
        column("ari_null_high", pa.float64(), "", "highest of these over pairs"),
        column("silhouette", pa.float64(), "", "mean silhouette of held-out maps' clusters in their code"),
        column("silhouette_null", pa.float64(), "", "silhouette on the Gaussian vectors"),
        column("n_maps", pa.int32(), "maps", "maps shown, of the first draw"),
        column("n_held_out", pa.int32(), "maps", "held-out maps, of all draws"),
        column("n_seeds", pa.int16(), "", "draws of maps, each with its own seed"),
    ),
)
SCHEMAS = (PATTERNS, CLUSTERS, HEAD_CLUSTERS, QUALITY)


@dataclass(frozen=True)
class VitPatternsResult(Result):
    """Maps with their codes and clusters.

    Attributes:
        sample: the maps.
        latents: float32 [n, n_latent].
        plane: float32 [n, 2].
        labels: int [n] clusters.
        prototypes: float32 [cluster, 2·rows − 1, 2·columns − 1] mean recentred map.
        quality: the autoencoder and its controls.
        n_held_out: held-out maps of all draws.
        thumbnails: uint8 [m, h, w, 3] of the images that occur, `thumbnail_of` [m] their indices in the image set.
        config: what was asked for.
    """

    kind: ClassVar[str] = "vit_patterns"

    sample: PatternSample
    latents: np.ndarray
    plane: np.ndarray
    labels: np.ndarray
    prototypes: np.ndarray
    quality: list[Quality]
    n_held_out: int
    thumbnails: np.ndarray
    thumbnail_of: np.ndarray
    config: VitPatternsConfig

    def names(self) -> list[str]:
        """A word for each cluster."""
        return [name_cluster(means) for means in self._cluster_means()]

    def _cluster_means(self) -> list[dict[str, float]]:
        described = describe(self.sample)
        n = int(self.labels.max()) + 1
        return [{k: float(v[self.labels == c].mean()) for k, v in described.items()} for c in range(n)]

    def head_shares(self) -> np.ndarray:
        """Share of each head's maps in each cluster, [layer, head, cluster]."""
        shape = (int(self.sample.layer.max()) + 1, int(self.sample.head.max()) + 1, int(self.labels.max()) + 1)
        counts = np.zeros(shape)
        np.add.at(counts, (self.sample.layer, self.sample.head, self.labels), 1)
        shares: np.ndarray = counts / counts.sum(-1, keepdims=True)
        return shares

    def tables(self) -> dict[str, pa.Table]:
        """Tables patterns, clusters, head_clusters and pattern_quality."""
        return {
            "patterns": PATTERNS.table(self._pattern_columns()),
            "clusters": CLUSTERS.table(list(self._cluster_rows())),
            "head_clusters": HEAD_CLUSTERS.table(list(self._head_rows())),
            "pattern_quality": QUALITY.table([self._quality_row(q) for q in self.quality]),
        }

    def _pattern_columns(self) -> dict[str, Any]:
        s = self.sample
        rows, columns = np.divmod(s.query, s.grid[1])
        return {
            "map": np.arange(len(s)),
            "layer": s.layer,
            "head": s.head,
            "image": s.image,
            "thumbnail": np.searchsorted(self.thumbnail_of, s.image),
            "row": rows,
            "column": columns,
            "x": self.plane[:, 0],
            "y": self.plane[:, 1],
            "cluster": self.labels,
            **{k: v.astype(np.float64) for k, v in describe(s).items()},
        }

    def _cluster_rows(self) -> Iterator[dict[str, Any]]:
        shares, centres = self.head_shares(), medoids(self.latents, self.labels)
        for cluster, means in enumerate(self._cluster_means()):
            n_maps = int((self.labels == cluster).sum())
            yield {
                "cluster": cluster,
                "name": name_cluster(means),
                "n_maps": n_maps,
                "share": n_maps / len(self.labels),
                "n_heads": int((shares[..., cluster] >= 0.1).sum()),
                "medoid": int(centres[cluster]),
                **{k: means[k] for k in DESCRIPTORS},
            }

    def _head_rows(self) -> Iterator[dict[str, Any]]:
        shares = self.head_shares()
        per_head = len(self.labels) // (shares.shape[0] * shares.shape[1])
        for (layer, head, cluster), share in np.ndenumerate(shares):
            yield {"layer": layer, "head": head, "cluster": cluster, "share": float(share), "n_maps": per_head}

    def _quality_row(self, q: Quality) -> dict[str, Any]:
        return {
            "method": q.method,
            "n_latent": q.n_latent,
            "explained": float(np.mean(q.explained)) if q.explained else None,
            "explained_low": min(q.explained, default=None),
            "explained_high": max(q.explained, default=None),
            "ari": float(np.mean(q.ari)),
            "ari_low": min(q.ari),
            "ari_null": float(np.mean(q.ari_null)),
            "ari_null_high": max(q.ari_null),
            "silhouette": q.silhouette,
            "silhouette_null": q.silhouette_null,
            "n_maps": len(self.sample),
            "n_held_out": self.n_held_out,
            "n_seeds": self.config.n_seeds,
        }

    def plot(self) -> Any:
        """The plane of maps, coloured by cluster."""
        figure = new_figure()
        for cluster, name in enumerate(self.names()):
            m = self.labels == cluster
            text = [f"{a}.{b}" for a, b in zip(self.sample.layer[m], self.sample.head[m], strict=True)]
            x, y = self.plane[m].T
            figure.add_scattergl(x=x, y=y, mode="markers", marker={"size": 4}, name=f"{cluster} {name}", text=text)
        figure.update_layout(title="attention maps of single queries", xaxis_title="", yaxis_title="")
        return figure

    def plot_prototypes(self) -> Any:
        """Mean recentred map of each cluster, the query in the middle."""
        import plotly.graph_objects as go

        titles = [f"{c} {name}" for c, name in enumerate(self.names())]
        columns = min(4, len(titles))
        figure = new_grid(-(-len(titles) // columns), columns, subplot_titles=titles)
        for c, map_ in enumerate(self.prototypes):
            heat = go.Heatmap(z=np.sqrt(map_), showscale=False)
            figure.add_trace(heat, row=c // columns + 1, col=c % columns + 1)
        figure.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed", scaleanchor="x")
        return figure

    def summary(self) -> dict[str, Any]:
        """Explained variance, stability of clusters over draws and silhouette, with their null, and the names of clusters."""
        found = {q.method: q for q in self.quality}
        ours, random = found["autoencoder"], found["autoencoder_random"]
        return {
            "n_maps": len(self.sample),
            "explained_autoencoder": float(np.mean(ours.explained)),
            "explained_random_start": float(np.mean(random.explained)),
            "explained_pca": float(np.mean(found["pca"].explained)),
            "ari_autoencoder": float(np.mean(ours.ari)),
            "ari_null": float(np.mean(ours.ari_null)),
            "ari_random_start": float(np.mean(random.ari)),
            "ari_pca": float(np.mean(found["pca"].ari)),
            "silhouette": ours.silhouette,
            "silhouette_null": ours.silhouette_null,
            "clusters": self.names(),
        }

    def _arrays(self) -> dict[str, dict[str, np.ndarray]]:
        return {
            "patterns": {
                "maps": self.sample.maps.astype(np.float16),
                "latents": self.latents,
                "prototypes": self.prototypes.astype(np.float32),
                "thumbnails": self.thumbnails,
            }
        }


def _held_out(image: np.ndarray, images: ImageDataset, seed: int) -> np.ndarray:
    """Which maps are kept from training, bool [n]: those of a fifth of the images."""
    if len(images) < 5:
        raise ConfigError(f"{len(images)} images cannot be split, a fifth of them held out; give 5 or more")
    labels = None if images.labels is None else images.labels.numpy()
    kept = stratified_order(len(images), labels, seed)[: len(images) // 5]
    found: np.ndarray = np.isin(image, kept)
    return found


def vit_patterns(
    model: AnyModel, images: ImageDataset, config: VitPatternsConfig | None = None, track: Track = no_track
) -> VitPatternsResult:
    """Draw single-query maps of all heads, code them, cluster them, lay them out.

    The maps of a fifth of the images are held out of training: they tell how much variance the codes explain, and how far
    clusters of fresh draws of maps (other queries, of the same images) agree, beside Gaussian vectors without clusters.

    Raises:
        UnsupportedModelError: the model is no vision model.
        ConfigError: fewer than 5 images, or too few maps of held-out ones.

    Example:
        >>> from attlas.analyses.vit import VitPatternsConfig, vit_patterns
        >>> small = VitPatternsConfig(n_maps=96, n_latent=2, n_clusters=2, n_epochs=1, n_seeds=2, layout="pca")
        >>> result = vit_patterns(vit_model, images, small)
        >>> result.plane.shape  # [maps, 2]
        (96, 2)
    """
    model = as_hooked(model)
    config = config or VitPatternsConfig()
    require_vit(model, images)
    drawn = sample_patterns(model, images, n_maps=config.n_maps * config.n_seeds, seed=config.seed, track=track)
    draw = deal(drawn, config.n_seeds, config.seed)
    held_out = _held_out(drawn.image, images, config.seed)
    for index in range(config.n_seeds):
        if min(np.bincount(held_out[draw == index], minlength=2)) < 2:
            raise ConfigError(f"{config.n_maps} maps leave a draw without held-out or training maps; draw more maps")
    _, latents, labels, quality = encode_and_cluster(
        drawn.recentred() if config.frame == "query" else drawn.maps,
        held_out,
        draw,
        n_latent=config.n_latent,
        n_clusters=config.n_clusters,
        n_epochs=config.n_epochs,
        seed=config.seed,
        track=track,
    )
    sample = drawn.take(draw == 0)
    used = np.unique(sample.image)
    (plane,) = [layout(codes, config.layout, config.seed) for codes in track([latents], "laying out the maps")]
    return VitPatternsResult(
        sample=sample,
        latents=latents,
        plane=plane,
        labels=labels,
        prototypes=prototypes(sample, labels),
        quality=quality,
        n_held_out=int(held_out.sum()),
        thumbnails=shrink(images.thumbnails[used]),
        thumbnail_of=used,
        config=config,
    )
