"""ViT heads: which matter, how far they look (Li et al. 2023, arXiv 2303.13731)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from attlas.analyses.vit_importance import HeadImportance, head_importance
from attlas.analyses.vit_strength import HeadStrength, head_strength
from attlas.data.images import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.schema import TableSchema, column
from attlas.data.workspace import Ref, Run, Workspace
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel

_LAYER = column("layer", pa.int16(), "", "layer index, from 0")
_HEAD = column("head", pa.int16(), "", "head index, from 0")
_N_IMAGES = column("n_images", pa.int32(), "images", "images measured")

IMPORTANCE = TableSchema(
    "importance",
    "one head, one ablation, one metric",
    (
        _LAYER,
        _HEAD,
        column("ablation", pa.string(), "", "what the head's z is set to: zero, or its mean over images and positions"),
        column("metric", pa.string(), "", "prob_drop, js, accuracy_drop or cls_distance"),
        column("value", pa.float64(), "see metric", "mean over images; js in nats, the others in fractions"),
        column("low", pa.float64(), "see metric", "95 % bootstrap interval over images, lower end"),
        column("high", pa.float64(), "see metric", "95 % bootstrap interval over images, upper end"),
        _N_IMAGES,
    ),
)
RINGS = TableSchema(
    "rings",
    "one head, one ring of patches around the query",
    (
        _LAYER,
        _HEAD,
        column("hop", pa.int16(), "patches", "Chebyshev distance of the ring from the query patch"),
        column("mass", pa.float64(), "fraction", "share of a patch query's attention on the ring, mean over queries"),
        column("mean_per_patch", pa.float64(), "fraction", "attention per patch of the ring"),
        _N_IMAGES,
    ),
)
STRENGTH = TableSchema(
    "strength",
    "one head",
    (
        _LAYER,
        _HEAD,
        column("cls_to_patch", pa.float64(), "fraction", "attention of the CLS token on all patches"),
        column("patch_to_cls", pa.float64(), "fraction", "attention of a patch on the CLS token"),
        column("patch_to_prefix", pa.float64(), "fraction", "attention of a patch on CLS and register tokens"),
        column("self", pa.float64(), "fraction", "attention of a patch on itself"),
        column("mean_distance_px", pa.float64(), "px", "mean distance from a patch to where it looks"),
        column("entropy", pa.float64(), "nats", "entropy of patch queries"),
        column("content_relevance", pa.float64(), "fraction", "share of the recentred map's variance between images"),
        _N_IMAGES,
    ),
)
SCHEMAS = (IMPORTANCE, RINGS, STRENGTH)


@dataclass(frozen=True)
class VitConfig:
    """What to measure on a vision model.

    Attributes:
        ablations: what a pruned head's output becomes: "zero", "mean", or both.
        batch_size: images at a time.
        seed: of the bootstrap.
        n_bootstrap: resamples of each interval.
    """

    ablations: tuple[str, ...] = ("zero", "mean")
    batch_size: int = 128
    seed: int = 0
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        odd = set(self.ablations) - {"zero", "mean"}
        if odd or not self.ablations:
            raise ConfigError(f"ablations {sorted(odd)} are not known; choose from zero, mean")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size {self.batch_size} must be 1 or more")


@dataclass(frozen=True)
class VitResult:
    """Importance and strength of every head; `importance` has one entry an ablation."""

    importance: list[HeadImportance]
    strength: HeadStrength
    config: VitConfig
    n_images: int

    def tables(self) -> dict[str, pa.Table]:
        """Tables importance, rings and strength."""
        return {
            "importance": IMPORTANCE.table(list(self._importance_rows())),
            "rings": RINGS.table(list(self._ring_rows())),
            "strength": STRENGTH.table(list(self._strength_rows())),
        }

    def _importance_rows(self) -> Iterator[dict[str, Any]]:
        for entry in self.importance:
            intervals = entry.intervals(self.config.seed, self.config.n_bootstrap)
            for metric, (mean, low, high) in intervals.items():
                for (layer, head), value in np.ndenumerate(mean):
                    yield {
                        "layer": layer,
                        "head": head,
                        "ablation": entry.ablation,
                        "metric": metric,
                        "value": float(value),
                        "low": float(low[layer, head]),
                        "high": float(high[layer, head]),
                        "n_images": self.n_images,
                    }

    def _ring_rows(self) -> Iterator[dict[str, Any]]:
        for (layer, head, hop), value in np.ndenumerate(self.strength.ring_mass):
            mean = float(self.strength.ring_mean[layer, head, hop])
            yield {
                "layer": layer,
                "head": head,
                "hop": hop,
                "mass": float(value),
                "mean_per_patch": mean,
                "n_images": self.n_images,
            }

    def _strength_rows(self) -> Iterator[dict[str, Any]]:
        s = self.strength
        for (layer, head), value in np.ndenumerate(s.cls_to_patch):
            at = (layer, head)
            yield {
                "layer": layer,
                "head": head,
                "cls_to_patch": float(value),
                "patch_to_cls": float(s.patch_to_cls[at]),
                "patch_to_prefix": float(s.patch_to_prefix[at]),
                "self": float(s.self_mass[at]),
                "mean_distance_px": float(s.distance[at]),
                "entropy": float(s.entropy[at]),
                "content_relevance": float(s.map_variation[at]),
                "n_images": self.n_images,
            }

    def heatmap(self, metric: str, ablation: str | None = None) -> np.ndarray:
        """Mean of a metric, [layer, head]."""
        entry = next((e for e in self.importance if ablation in (None, e.ablation)), None)
        if entry is None or metric not in entry.per_image:
            raise ConfigError(f"no metric '{metric}' with ablation '{ablation}'")
        mean: np.ndarray = entry.per_image[metric].mean(0)
        return mean

    @property
    def main_metric(self) -> str:
        """js where there is a classifier, else cls_distance."""
        return "js" if "js" in self.importance[0].per_image else "cls_distance"

    def plot(self, metric: str | None = None) -> Any:
        """Heatmap layers × heads of one importance metric."""
        import plotly.graph_objects as go

        metric = metric or self.main_metric
        figure = go.Figure(go.Heatmap(z=self.heatmap(metric), colorscale="Viridis", colorbar={"title": metric}))
        figure.update_layout(xaxis_title="head", yaxis_title="layer", title=f"head importance: {metric}")
        figure.update_yaxes(autorange="reversed", dtick=1)
        return figure

    def summary(self) -> dict[str, Any]:
        """Headline numbers: the most important head by the main metric, and the reach of the first and last layer."""
        values = self.heatmap(self.main_metric)
        layer, head = (int(i) for i in np.unravel_index(values.argmax(), values.shape))
        return {
            "n_images": self.n_images,
            "metric": self.main_metric,
            "top_head": f"{layer}.{head}",
            "top_value": float(values.max()),
            "mean_distance_first_layer_px": float(self.strength.distance[0].mean()),
            "mean_distance_last_layer_px": float(self.strength.distance[-1].mean()),
        }

    def save(self, workspace: Workspace, model: Ref, data: Ref) -> Run:
        """Write a run of kind "vit"; arrays `maps` holds the recentred maps [layer, head, rows, columns]."""
        with workspace.begin("vit", model=model, data=data, config=self.config, seed=self.config.seed) as run:
            for name, table in self.tables().items():
                run.table(name, table)
            run.arrays("maps", {"recentred": self.strength.maps.astype(np.float32)})
            run.summary = self.summary()
        return run.record


def vit(
    model: HookedModel, images: ImageDataset, config: VitConfig | None = None, track: Track = no_track
) -> VitResult:
    """Importance of every head, and how far it looks.

    Raises:
        UnsupportedModelError: the model is no vision model.
    """
    config = config or VitConfig()
    if model.cfg.family != "vit":
        raise UnsupportedModelError(
            f"{model.name} is a {model.cfg.family} model; head importance on images needs a ViT"
        )
    importance = head_importance(model, images, ablations=config.ablations, batch_size=config.batch_size, track=track)
    strength = head_strength(model, images, batch_size=min(32, config.batch_size), track=track)
    return VitResult(importance, strength, config, len(images))
