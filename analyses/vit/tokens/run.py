"""Which patches of an image does a ViT need? Column mass, leaf tokens, removal curves, attention rollout on trial."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.vit.config import VitTokensConfig
from attlas.analyses.vit.readout import make_readout, metric_mean
from attlas.analyses.vit.relevance import class_relevance_of
from attlas.analyses.vit.rollout import relevance_of
from attlas.analyses.vit.tokens.column_mass import ColumnMass, column_mass
from attlas.analyses.vit.tokens.removal import RemovalCurve, random_orders, removal_curves
from attlas.analyses.vit.tokens.tables import COLUMN_MASS, LEAF_TOKENS, REMOVAL, ROLLOUT, SCHEMAS, TOKENS
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.splits import stratified_order
from attlas.data.stats import Interval
from attlas.errors import ConfigError
from attlas.interp import AnyModel, as_hooked
from attlas.interp.require import require_vit

__all__ = ["SCHEMAS", "VitTokensResult", "vit_tokens"]


@dataclass(frozen=True)
class VitTokensResult(Result):
    """What patches receive, and what their absence does.

    Attributes:
        mass: attention received.
        removal: layer → order ("least-received", "most-received", "random-0" …) → curve.
        rollout: "deletion" (most relevant first) or "insertion" (least relevant first, read backwards) → method
            ("rollout", "last_layer", "column_mass", with a classifier "class_relevance", "random-0" …) → curve, patches gone
            before layer 0.
        config: what was asked for.
    """

    kind: ClassVar[str] = "vit_tokens"

    mass: ColumnMass
    removal: dict[int, dict[str, RemovalCurve]]
    rollout: dict[str, dict[str, RemovalCurve]]
    config: VitTokensConfig

    @property
    def main_metric(self) -> str:
        """accuracy or knn_accuracy with labels, else probability or similarity."""
        found = next(iter(next(iter(self.removal.values())).values())).per_image
        return next(m for m in ("accuracy", "knn_accuracy", "probability", "similarity") if m in found)

    @property
    def rollout_metric(self) -> str:
        """probability with a classifier, else similarity."""
        found = next(iter(self.rollout["deletion"].values())).per_image
        return "probability" if "probability" in found else "similarity"

    def _interval(self, values: np.ndarray, metric: str = "area") -> Interval:
        return metric_mean(metric, values, seed=self.config.seed, n_samples=self.config.n_bootstrap)

    def tables(self) -> dict[str, pa.Table]:
        """Tables column_mass, tokens, leaf_tokens, removal and rollout."""
        return {
            "column_mass": COLUMN_MASS.table(list(self._mass_rows())),
            "tokens": TOKENS.table(list(self._token_rows())),
            "leaf_tokens": LEAF_TOKENS.table(list(self._leaf_rows())),
            "removal": REMOVAL.table(list(self._removal_rows())),
            "rollout": ROLLOUT.table(list(self._rollout_rows())),
        }

    def _mass_rows(self) -> Iterator[dict[str, Any]]:
        columns = self.mass.grid[1]
        for (layer, head, patch), value in np.ndenumerate(self.mass.average[..., self.mass.n_prefix :]):
            row, column = divmod(patch, columns)
            yield {"layer": layer, "head": head, "row": row, "column": column, "mass": float(value)}

    def _token_rows(self) -> Iterator[dict[str, Any]]:
        prefix = self.mass.average[..., : self.mass.n_prefix]
        for (layer, head), leaf in np.ndenumerate(self.mass.leaf_share):
            yield {
                "layer": layer,
                "head": head,
                "cls_mass": float(prefix[layer, head, :1].sum()),
                "register_mass": float(prefix[layer, head, 1:].sum()),
                "leaf_share": float(leaf),
                "gini": float(self.mass.gini[layer, head]),
                "n_images": len(self.mass.by_image),
            }

    def _leaf_rows(self) -> Iterator[dict[str, Any]]:
        for layer in range(self.mass.by_image.shape[1]):
            found = self.mass.leaf_frequency(layer, self.config.leaf_share)
            for (row, column), value in np.ndenumerate(found):
                yield {"layer": layer, "row": row, "column": column, "frequency": float(value)}

    def _removal_rows(self) -> Iterator[dict[str, Any]]:
        for layer, orders in self.removal.items():
            for order, curve in orders.items():
                for metric, values in curve.per_image.items():
                    mean, low, high = self._interval(values.T, metric)
                    for step, fraction in enumerate(curve.fractions):
                        yield {
                            "layer": layer,
                            "order": order,
                            "fraction": float(fraction),
                            "metric": metric,
                            "value": float(mean[step]),
                            "low": float(low[step]),
                            "high": float(high[step]),
                            "n_images": values.shape[1],
                        }

    def _rollout_rows(self) -> Iterator[dict[str, Any]]:
        metric = self.rollout_metric
        for test, methods in self.rollout.items():
            for method, curve in methods.items():
                areas = curve.auc(metric)
                mean, low, high = (float(x[0]) for x in self._interval(areas[:, None]))
                row = {"test": test, "method": method, "metric": metric, "auc": mean, "low": low, "high": high}
                yield {**row, **self._gain(test, method), "n_images": len(areas)}

    def _gain(self, test: str, method: str) -> dict[str, float]:
        """By how much a method beats the mean random order: positive is better in both tests."""
        methods, metric = self.rollout[test], self.rollout_metric
        chance = np.mean([c.auc(metric) for name, c in methods.items() if name.startswith("random")], axis=0)
        gain = (methods[method].auc(metric) - chance) * (1 if test == "insertion" else -1)
        mean, low, high = (float(x[0]) for x in self._interval(gain[:, None]))
        return {"gain": mean, "gain_low": low, "gain_high": high}

    def plot(self, layer: int | None = None) -> Any:
        """Removal curves of one layer by the main metric."""
        layer = next(iter(self.removal)) if layer is None else layer
        if layer not in self.removal:
            raise ConfigError(f"patches were not removed at layer {layer}, only at {sorted(self.removal)}")
        figure = new_figure()
        for name, curve in self.removal[layer].items():
            y = curve.per_image[self.main_metric].mean(1)
            figure.add_scatter(x=curve.fractions, y=y, name=name, mode="lines+markers")
        figure.update_layout(
            xaxis_title="share of patches removed",
            yaxis_title=self.main_metric,
            title=f"{self.main_metric} as patches leave before layer {layer}",
        )
        return figure

    def summary(self) -> dict[str, Any]:
        """Areas under the removal curves at the first layer tried, and rollout's gain over chance in both tests."""
        metric, (layer, orders) = self.main_metric, next(iter(self.removal.items()))
        areas = {name: float(curve.auc(metric).mean()) for name, curve in orders.items()}
        found: dict[str, Any] = {"metric": metric, "layer": layer}
        found["auc_least_received"] = areas["least-received"]
        found["auc_most_received"] = areas["most-received"]
        found["auc_random"] = float(np.mean([a for name, a in areas.items() if name.startswith("random")]))
        for test in ("deletion", "insertion"):
            found[f"rollout_{test}_gain"] = self._gain(test, "rollout")["gain"]
            if "class_relevance" in self.rollout[test]:
                found[f"relevance_{test}_gain"] = self._gain(test, "class_relevance")["gain"]
        return found


def vit_tokens(
    model: AnyModel, images: ImageDataset, config: VitTokensConfig | None = None, track: Track = no_track
) -> VitTokensResult:
    """Attention received, removal of the patches that receive least, and attention rollout against chance.

    Patches removed before layer l go by the attention they received at layer l − 1 (before layer 0: at layer 0, from a
    pass with all patches).

    Raises:
        UnsupportedModelError: the model is no vision model.
        ConfigError: a layer to remove at does not exist.

    Example:
        >>> from attlas.analyses.vit import VitTokensConfig, vit_tokens
        >>> small = VitTokensConfig(remove_at=(1,), fractions=(0.0, 0.5), n_random=1, n_bootstrap=10)
        >>> result = vit_tokens(vit_model, images, small)
        >>> sorted(result.tables())
        ['column_mass', 'leaf_tokens', 'removal', 'rollout', 'tokens']
    """
    model = as_hooked(model)
    config = config or VitTokensConfig()
    require_vit(model, images)
    last = model.cfg.n_layers - 1
    layers = config.remove_at or tuple(sorted({0, (last + 1) // 2}))
    if any(not 0 <= layer <= last for layer in layers):
        raise ConfigError(f"remove_at {layers}: {model.name} has layers 0–{last}")
    mass = column_mass(model, images, batch_size=min(32, config.batch_size), track=track)
    own = None if images.labels is None else images.labels.numpy()
    rows = torch.from_numpy(stratified_order(len(images), own, config.seed)[: config.n_curve_images])
    few = images.select(rows)
    readout = make_readout(model, few, min(32, config.batch_size), config.seed)
    n_patches = mass.grid[0] * mass.grid[1]
    chance = {f"random-{i}": random_orders(len(few), n_patches, config.seed + i) for i in range(config.n_random)}

    def curves(orders: dict[str, Tensor], layer: int) -> dict[str, RemovalCurve]:
        return removal_curves(
            model,
            few,
            readout,
            orders | chance,
            fractions=config.fractions,
            layer=layer,
            batch_size=config.batch_size,
            track=track,
        )

    removal = {}
    for layer in layers:
        least = mass.least_first(max(0, layer - 1))[rows]
        removal[layer] = curves({"least-received": least, "most-received": least.flip(-1)}, layer)
    relevance = relevance_of(model, few, residual=config.residual, batch_size=config.batch_size, track=track)
    if model.cfg.n_classes:
        relevance["class_relevance"] = class_relevance_of(model, few, batch_size=config.batch_size, track=track)
    most = {name: torch.argsort(r, dim=-1, descending=True, stable=True) for name, r in relevance.items()}
    rollout = {
        "deletion": curves(most, 0),
        "insertion": curves({name: order.flip(-1) for name, order in most.items()}, 0),
    }
    return VitTokensResult(mass, removal, rollout, config)
