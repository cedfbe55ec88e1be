"""ViT heads: which matter, how far they attend (Li et al. 2023, arXiv 2303.13731)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.vit.agreement import Agreement, agreement
from attlas.analyses.vit.config import VitConfig
from attlas.analyses.vit.importance import HeadImportance, head_importance
from attlas.analyses.vit.strength import HeadStrength, Trend, head_strength, trend
from attlas.analyses.vit.tables import (
    AGREEMENT,
    IMPORTANCE,
    IMPORTANCE_BY_CLASS,
    RINGS,
    SCHEMAS,
    STRENGTH,
    STRENGTH_BY_CLASS,
    TREND,
)
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.stats import bootstrap_mean
from attlas.errors import ConfigError
from attlas.interp import AnyModel, as_hooked
from attlas.interp.require import require_vit

__all__ = ["SCHEMAS", "VitConfig", "VitResult", "vit"]


@dataclass(frozen=True)
class VitResult(Result):
    """Importance and strength of every head.

    Attributes:
        importance: one entry an ablation; empty when not measured.
        strength: None when not measured.
        config: what was asked for.
        n_images: images measured.
        labels: int64 [n_images], the classes by which tables are split, or None.
        class_names: of the labels, or None.
    """

    kind: ClassVar[str] = "vit"

    importance: list[HeadImportance]
    strength: HeadStrength | None
    config: VitConfig
    n_images: int
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    def tables(self) -> dict[str, pa.Table]:
        """Tables importance, importance_by_class and agreement; rings, strength, strength_by_class and trend."""
        tables = {}
        if self.importance:
            tables["importance"] = IMPORTANCE.table(list(self._importance_rows()))
            tables["agreement"] = AGREEMENT.table([_row(a) for a in self.agreement()])
            if self.labels is not None:
                tables["importance_by_class"] = IMPORTANCE_BY_CLASS.table(list(self._importance_by_class()))
        if self.strength is not None:
            tables["rings"] = RINGS.table(list(self._ring_rows(self.strength)))
            tables["strength"] = STRENGTH.table(list(self._strength_rows(self.strength)))
            tables["trend"] = TREND.table([{**_row(t), "n_images": self.n_images} for t in self.trend()])
            if self.labels is not None:
                tables["strength_by_class"] = STRENGTH_BY_CLASS.table(list(self._strength_by_class(self.strength)))
        return tables

    def agreement(self) -> list[Agreement]:
        """Rank correlation over heads between every two measures of importance."""
        return agreement(self.importance, seed=self.config.seed, n_samples=self.config.n_bootstrap)

    def trend(self) -> list[Trend]:
        """How each measure of strength changes over layers."""
        if self.strength is None:
            return []
        return trend(self.strength, seed=self.config.seed, n_samples=self.config.n_bootstrap)

    def _importance_rows(self) -> Iterator[dict[str, Any]]:
        for entry in self.importance:
            intervals = entry.intervals(self.config.seed, self.config.n_bootstrap)
            for metric, (mean, low, high) in intervals.items():
                for at, value in np.ndenumerate(mean):
                    yield {
                        **_head(at),
                        "ablation": entry.ablation,
                        "metric": metric,
                        "value": float(value),
                        "low": float(low[at]),
                        "high": float(high[at]),
                        "n_images": self.n_images,
                    }

    def _classes(self) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """(columns of the class, its images) for every class that has images."""
        labels = self.labels if self.labels is not None else np.empty(0, dtype=np.int64)
        for label in np.unique(labels):
            name = self.class_names[label] if self.class_names is not None else str(label)
            members = np.flatnonzero(labels == label)
            yield {"class": int(label), "class_name": name, "n_images": len(members)}, members

    def _importance_by_class(self) -> Iterator[dict[str, Any]]:
        for columns, members in self._classes():
            for entry in self.importance:
                for metric, values in entry.per_image.items():
                    mean, low, high = entry.interval(metric, values[members], self.config.seed, self.config.n_bootstrap)
                    for at, value in np.ndenumerate(mean):
                        yield {
                            **_head(at),
                            **columns,
                            "ablation": entry.ablation,
                            "metric": metric,
                            "value": float(value),
                            "low": float(low[at]),
                            "high": float(high[at]),
                        }

    def _ring_rows(self, strength: HeadStrength) -> Iterator[dict[str, Any]]:
        for (layer, head, hop), value in np.ndenumerate(strength.ring_mass):
            yield {
                "layer": layer,
                "head": head,
                "hop": hop,
                "mass": float(value),
                "mean_per_patch": float(strength.ring_mean[layer, head, hop]),
                "mean_per_patch_by_query": float(strength.ring_mean_by_query[layer, head, hop]),
                "n_images": self.n_images,
            }

    def _strength_rows(self, strength: HeadStrength) -> Iterator[dict[str, Any]]:
        means = {m: strength.mean(m) for m in strength.per_image}
        reach = strength.per_image["mean_distance_px"]
        _, low, high = bootstrap_mean(reach, seed=self.config.seed, n_samples=self.config.n_bootstrap)
        for at in np.ndindex(*reach.shape[1:]):
            yield {
                **_head(at),
                **{m: float(values[at]) for m, values in means.items()},
                "mean_distance_low": float(low[at]),
                "mean_distance_high": float(high[at]),
                "content_relevance": float(strength.map_variation[at]),
                "n_images": self.n_images,
            }

    def _strength_by_class(self, strength: HeadStrength) -> Iterator[dict[str, Any]]:
        wanted = [f.name for f in STRENGTH_BY_CLASS.columns if f.name in strength.per_image]
        for columns, members in self._classes():
            means = {m: strength.per_image[m][members].mean(0, dtype=np.float64) for m in wanted}
            for at in np.ndindex(*next(iter(means.values())).shape):
                yield {**_head(at), **columns, **{m: float(v[at]) for m, v in means.items()}}

    def heatmap(self, metric: str, ablation: str | None = None) -> np.ndarray:
        """Mean of a metric of importance, or of a measure of strength, [layer, head].

        Raises:
            ConfigError: it was not measured.
        """
        if self.strength is not None and metric in self.strength.per_image:
            return self.strength.mean(metric)
        entry = next((e for e in self.importance if ablation in (None, e.ablation)), None)
        if entry is None or metric not in entry.per_image:
            raise ConfigError(f"no metric '{metric}' with ablation '{ablation}'; measured: {self._measured()}")
        mean: np.ndarray = entry.per_image[metric].mean(0)
        return mean

    def _measured(self) -> list[str]:
        metrics = list(self.importance[0].per_image) if self.importance else []
        return metrics + (list(self.strength.per_image) if self.strength else [])

    @property
    def main_metric(self) -> str:
        """js where there is a classifier, else cls_distance; mean_distance_px where importance was not measured."""
        return self._measured()[0] if self.importance else "mean_distance_px"

    def plot(self, metric: str | None = None) -> Any:
        """Heatmap layers × heads of one metric of importance or measure of strength."""
        import plotly.graph_objects as go

        metric = metric or self.main_metric
        figure = new_figure(go.Heatmap(z=self.heatmap(metric), colorbar={"title": metric}))
        figure.update_layout(xaxis_title="head", yaxis_title="layer", title=f"{metric} by head")
        figure.update_yaxes(autorange="reversed", dtick=1)
        return figure

    def summary(self) -> dict[str, Any]:
        """Headline numbers: the most important head by the main metric, and the reach of the first and last layer."""
        found: dict[str, Any] = {"n_images": self.n_images}
        if self.importance:
            values = self.heatmap(self.main_metric)
            at = np.unravel_index(values.argmax(), values.shape)
            _, low, high = self.importance[0].intervals(self.config.seed, self.config.n_bootstrap)[self.main_metric]
            found |= {
                "metric": self.main_metric,
                "ablation": self.importance[0].ablation,
                "top_head": f"{int(at[0])}.{int(at[1])}",
                "top_value": float(values.max()),
                "top_low": float(low[at]),
                "top_high": float(high[at]),
            }
            for entry in self.importance[1:]:
                found[f"top_value_{entry.ablation}"] = float(self.heatmap(self.main_metric, entry.ablation)[at])
        if self.strength is not None:
            found["mean_distance_first_layer_px"] = float(self.strength.distance[0].mean())
            found["mean_distance_last_layer_px"] = float(self.strength.distance[-1].mean())
        return found

    def _arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """The recentred maps [layer, head, rows, columns]."""
        return {"maps": {"recentred": self.strength.maps.astype(np.float32)}} if self.strength is not None else {}


def _head(at: tuple[int, ...]) -> dict[str, int]:
    return {"layer": at[0], "head": at[1]}


def _row(entry: Agreement | Trend) -> dict[str, Any]:
    """A dataclass as a row, NaN as null."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in vars(entry).items()}


def vit(model: AnyModel, images: ImageDataset, config: VitConfig | None = None, track: Track = no_track) -> VitResult:
    """Importance of every head, and how far it looks.

    Raises:
        UnsupportedModelError: the model is no vision model.
        ConfigError: the images do not fit the model.

    Example:
        >>> from attlas.analyses.vit import VitConfig, vit
        >>> result = vit(vit_model, images, VitConfig(measure=("strength",), n_bootstrap=10))
        >>> result.strength.per_image["cls_to_patch"].shape  # [images, layer, head]
        (8, 4, 6)
    """
    model = as_hooked(model)
    config = config or VitConfig()
    require_vit(model, images)
    importance: list[HeadImportance] = []
    strength = None
    if "importance" in config.measure:
        importance = head_importance(
            model,
            images,
            ablations=config.ablations,
            batch_size=config.batch_size,
            resample_draws=config.resample_draws,
            seed=config.seed,
            track=track,
        )
    if "strength" in config.measure:
        strength = head_strength(model, images, batch_size=min(32, config.batch_size), track=track)
    labels = images.labels.numpy() if images.labels is not None else None
    return VitResult(importance, strength, config, len(images), labels, images.class_names)
